"""The contiguous cache: K and V of a sequence in one buffer a layer, as long as it may become."""

from jaxtyping import Shaped
from torch import Tensor, arange

from llmsys.attention import Attention, sdpa_attention
from llmsys.attention.rotary import Rotation, rotate
from llmsys.cache.backend import Batch, run_stage, value_size
from llmsys.cache.spec import CacheSpec, LayerCache


class ContiguousCache:
    """K and V of every token so far, in one buffer a layer; the step's queries attend to all of it, by any stage.

    The buffers are made at the first step, (B, Hkv, capacity, D) each, for that step's batch size. Keys are kept
    rotated. Where v is None (absorbed latent attention) the keys alone are kept, and the values are a view of them.

    Parameters
    ----------
    stage
        Attention with the contract of `llmsys.attention.contract`. It will be called with Tq < Tk.
    capacity
        Tokens that a sequence may have.
    spec
        The model's `cache_spec()`: what each layer will hand over. None takes it from the first step.

    Attributes
    ----------
    length : int
        Tokens held.

    Raises
    ------
    ValueError
        At once: `capacity` is below 1, or the spec has further entries, which this cache has no place for. In a step:
        more tokens than there is room for, another batch size, or a layer that hands over something else than the spec
        (or its first step) said.
    """

    def __init__(self, stage: Attention = sdpa_attention, *, capacity: int, spec: CacheSpec | None = None):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 token, got {capacity}")
        for each in spec.layers if spec else ():
            if each.entries:
                raise ValueError(
                    f"the contiguous cache keeps keys and values alone, and layer {each.layer} wants "
                    f"{', '.join(entry.name for entry in each.entries)} kept, too: take a backend that knows these"
                )
        self.stage = stage
        self.capacity = capacity
        self.spec = spec
        self.length = 0
        self._layers: dict[int, LayerCache] = {each.layer: each for each in spec.layers} if spec else {}
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}  # of layers whose values are not in their keys

    @property
    def bytes(self) -> int:
        """Memory of the buffers made so far: B · capacity · the bytes that each of their layers keeps of a token."""
        return sum(x.nbytes for x in (*self._keys.values(), *self._values.values()))

    def begin(self, tokens: Shaped[Tensor, "B T *C"]) -> Batch:
        B, T = tokens.shape[:2]
        start, end = self.length, self.length + T
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {start} tokens of at most {self.capacity}, and {T} more do not fit: make it with a "
                "larger capacity"
            )
        held = next(iter(self._keys.values()), None)
        if held is not None and B != held.shape[0]:
            raise ValueError(f"tokens must have the cache's batch size, {held.shape[0]}, got {B}")
        self.length = end
        return Batch(arange(start, end, device=tokens.device))

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
        Dv = self._check(layer, k, v, turn)
        q, k = rotate(q, turn), rotate(k, turn)
        if layer not in self._keys:
            room = (*k.shape[:2], self.capacity)
            self._keys[layer] = k.new_empty(*room, k.shape[3])
            if v is not None:
                self._values[layer] = v.new_empty(*room, Dv)
        keys = self._keys[layer]
        end = self.length
        new = slice(end - k.shape[2], end)
        keys[:, :, new] = k
        if v is not None:
            values = self._values[layer]
            values[:, :, new] = v
        else:
            values = keys[..., :Dv]
        return run_stage(self.stage, q, keys[:, :, :end], values[:, :, :end], scale)

    def _check(self, layer: int, k: Tensor, v: Tensor | None, turn: Rotation | None) -> int:
        """Whether k and v are what this layer said it would hand over. Returns Dv."""
        said = self._layers.get(layer)
        if said is None and self.spec is not None:
            raise ValueError(f"layer {layer} is not in the spec that the cache was made from")
        Dv = value_size(k, turn, said and said.Dv) if v is None else v.shape[3]
        if said is None:
            self._layers[layer] = LayerCache(layer, k.shape[1], k.shape[3], Dv, k.dtype, v is None)
        elif (k.shape[1], k.shape[3], Dv, k.dtype, v is None) != (
            said.heads, said.Dk, said.Dv, said.dtype, said.values_in_keys,
        ):  # fmt: skip
            raise ValueError(
                f"layer {layer} must hand over {_words(said)}; got "
                f"{_words(LayerCache(layer, k.shape[1], k.shape[3], Dv, k.dtype, v is None))}"
            )
        return Dv


def _words(layer: LayerCache) -> str:
    values = "their first Dv columns as values (v=None)" if layer.values_in_keys else "values of their own"
    return f"keys of {layer.heads} heads in {layer.dtype}, Dk = {layer.Dk}, Dv = {layer.Dv}, {values}"
