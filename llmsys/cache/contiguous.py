"""The contiguous cache: K and V of each sequence in a row of its own, as long as the sequence may become."""

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor, arange

from llmsys.attention import Attention, sdpa_attention
from llmsys.attention.rotary import Rotation, rotate
from llmsys.cache.batch import Batch
from llmsys.cache.groups import Group, attend_in_groups, groups_of
from llmsys.cache.layers import Layers
from llmsys.cache.spec import CacheSpec


class ContiguousCache:
    """K and V of every token so far, in one buffer a layer; the step's queries attend to all of it, by any stage.

    A buffer is (Hkv, slots, D), made at the first step: row i has the slots from i · capacity on. So it is a cache of
    blocks, of which a sequence has one, its row (`Chunk(…, blocks=[row])`). Behind them is one slot more, to which slot
    −1 leads: padding is written there, and nobody reads it. Keys are kept rotated. Where v is None (absorbed
    latent attention) the keys alone are kept, and the values are a view of them.

    Used with `begin`, every row goes on with its own sequence, all at the same length. Where the caller makes the
    batches, the rows have lengths of their own, which the caller keeps count of, and one may be given to another
    sequence by beginning again at `computed=0`.

    Parameters
    ----------
    stage
        Attention with the contract of `llmsys.attention.contract`. It will be called with Tq < Tk, and for a padded
        step with Tq > Tk.
    capacity
        Tokens that a sequence may have.
    sequences
        Rows. None: as many as the first step has, which `begin` must then see.
    spec
        The model's `cache_spec()`: what each layer will hand over. None takes it from the first step.

    Attributes
    ----------
    length : int
        Tokens held of each sequence, as far as `begin` knows.
    block_size : int
        The capacity: with this a step of many sequences is made (`llmsys.cache.batch_of`).

    Raises
    ------
    ValueError
        At once: `capacity` or `sequences` is below 1, or the spec has further entries, which this cache has no place
        for. In a step: more tokens than there is room for, another batch size, a row that is not there or is in the
        step twice, a tree, or a layer that hands over something else than the spec (or its first step) said.
    """

    def __init__(
        self,
        stage: Attention = sdpa_attention,
        *,
        capacity: int,
        sequences: int | None = None,
        spec: CacheSpec | None = None,
    ):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 token, got {capacity}")
        if sequences is not None and sequences < 1:
            raise ValueError(f"sequences must be at least 1, or None for those of the first step, got {sequences}")
        self._layers = Layers(spec, "the contiguous cache")
        self.stage = stage
        self.capacity = self.block_size = capacity
        self.sequences = sequences
        self.spec = spec
        self.length = 0
        self._keys: dict[int, _Buffer] = {}
        self._values: dict[int, _Buffer] = {}  # of layers whose values are not in their keys
        self._step: _Step | None = None
        self._checked: tuple[Batch, list[int]] | None = None  # the last batch that was looked at, and its rows
        self._counts_itself = True  # until a caller says how much is computed

    @property
    def bytes(self) -> int:
        """Memory of the rows made so far: sequences · capacity · the bytes that each of their layers keeps of a token.

        A layer's spare slot, one token more, is not counted.
        """
        return sum(each.rows.nbytes for each in (*self._keys.values(), *self._values.values()))

    def begin(self, tokens: Shaped[Tensor, "B T *C"]) -> Batch:
        B, T = tokens.shape[:2]
        start, end = self.length, self.length + T
        if not self._counts_itself:
            raise ValueError(
                "the cache has been given batches, which say how many tokens each row holds, so it cannot go on by "
                "itself: give it one again (llmsys.cache.batch_of)"
            )
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {start} tokens of at most {self.capacity}, and {T} more do not fit: make it with a "
                "larger capacity"
            )
        if self.sequences is None:
            self.sequences = B
        elif B != self.sequences:
            raise ValueError(f"tokens must have the cache's batch size, {self.sequences}, got {B}")
        self.length = end
        positions = slots = arange(start, end, device=tokens.device)
        if B > 1:
            slots = (arange(B, device=tokens.device)[:, None] * self.capacity + positions).flatten()
        return Batch(positions, slot_mapping=slots, max_query_len=T, max_seq_len=end)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor | None,
        batch: Batch,
        *,
        turn: Rotation | None = None,
        scale: float | None = None,
    ) -> Tensor:
        Dv = self._layers.check(layer, k, v, turn)
        step = self._step_of(layer, q, batch)
        q, k = rotate(q, turn), rotate(k, turn)
        if layer not in self._keys:
            self._keys[layer] = _Buffer.of(k, self.sequences, self.capacity)
            if v is not None:
                self._values[layer] = _Buffer.of(v, self.sequences, self.capacity)
        keys, values = self._keys[layer], self._values.get(layer)
        keys.write(step.slots, k)
        if values is not None:
            values.write(step.slots, v)

        def keys_and_values(group: Group) -> tuple[Tensor, Tensor]:
            rows = slice(group.row, group.row + group.sequences)
            k = keys.rows[rows, :, : group.keys]
            return k, k[..., :Dv] if values is None else values.rows[rows, :, : group.keys]

        return attend_in_groups(self.stage, q, step.groups, keys_and_values, scale)

    def _step_of(self, layer: int, q: Tensor, batch: Batch) -> "_Step":
        """What is the same in all layers of a step, made in its first layer.

        A layer that is not above the last one begins the next step, though it be of the same batch: a CUDA graph
        captures a step by a batch that has been run before, and its slots must be computed in the graph.
        """
        if self._step is None or self._step.batch is not batch or layer <= self._step.layer:
            self.check_batch(batch)
            if batch.chunks:
                groups = groups_of(batch, self._checked[1])
                self._counts_itself = False
            else:
                groups = [Group(0, 0, q.shape[0], q.shape[2], batch.max_seq_len)]
            spare = self.sequences * self.capacity
            self._step = _Step(batch, layer, batch.slot_mapping.long() % (spare + 1), groups)  # −1 becomes the spare
        self._step.layer = layer
        return self._step

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that this cache cannot take; each is looked at once.

        How much of a sequence is computed is believed: whoever makes the batches keeps count of that.

        Raises
        ------
        ValueError
            It has no slots, is made for another capacity, or has a tree; a row is not there, too short, or in it twice;
            or the cache does not know how many rows it has. Says which, and what to do.
        """
        if self._checked is None or self._checked[0] is not batch:
            if batch.slot_mapping is None:
                raise ValueError("batch must be what begin returned, or made by llmsys.cache.batch_of: it has no slots")
            self._checked = batch, self._rows(batch) if batch.chunks else []

    def _rows(self, batch: Batch) -> list[int]:
        """The row of each of the batch's chunks. Refuses what this cache cannot do."""
        if batch.block_size != self.block_size:
            raise ValueError(
                f"batch must be made with the cache's block_size, {self.block_size}, got {batch.block_size}"
            )
        if self.sequences is None:
            raise ValueError("sequences must be given to a contiguous cache whose caller makes the batches")
        if batch.tree_mask is not None:
            raise ValueError("chunks: the contiguous cache knows no tree, so there can be none")
        rows = [int(chunk.blocks[0]) for chunk in batch.chunks]
        for i, (chunk, row) in enumerate(zip(batch.chunks, rows, strict=True)):
            if row >= self.sequences:
                raise ValueError(
                    f"chunks[{i}].blocks must be one of the cache's rows, from 0 to {self.sequences - 1}, got {row}"
                )
            if (end := chunk.computed + len(chunk.tokens)) > self.capacity:
                raise ValueError(
                    f"chunks[{i}]: {end} tokens do not fit into a row of {self.capacity}: make the cache with a larger "
                    "capacity"
                )
        if len(set(rows)) < len(rows):
            raise ValueError(f"chunks must be of different rows, one a sequence, got rows {rows}")
        return rows


@dataclass
class _Step:
    batch: Batch
    layer: int  # the last one that attended
    slots: Tensor  # (N,) int64 and from 0, as torch's indexing wants them
    groups: list[Group]


@dataclass(frozen=True)
class _Buffer:
    """A layer's keys, or its values: the same memory, as slots to write to and as rows to attend to."""

    slots: Tensor  # (Hkv, sequences · capacity + 1, D)
    rows: Tensor  #  (sequences, Hkv, capacity, D)

    @classmethod
    def of(cls, x: Tensor, sequences: int, capacity: int) -> "_Buffer":
        """For what is like x, (B, Hkv, T, D)."""
        slots = x.new_empty(x.shape[1], sequences * capacity + 1, x.shape[3])
        return cls(slots, slots[:, :-1].unflatten(1, (sequences, capacity)).transpose(0, 1))

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Put x (B, Hkv, T, D) into slots (B · T,)."""
        self.slots.index_copy_(1, slots, x[0] if x.shape[0] == 1 else x.transpose(0, 1).flatten(1, 2))
