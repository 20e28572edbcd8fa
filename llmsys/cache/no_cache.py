"""No cache: the tokens of a step are all there are."""

import functools

import torch
from jaxtyping import Shaped
from torch import Tensor

from llmsys.attention import Attention, sdpa_attention
from llmsys.attention.rotary import Rotation, rotate
from llmsys.cache.backend import run_stage, value_size
from llmsys.cache.batch import Batch
from llmsys.cache.groups import Group, attend_in_groups, groups_of, heads_first, tokens_first
from llmsys.cache.spec import CacheSpec


class NoCache:
    """Attention over the tokens of this step alone, by any stage. To go on, run the whole sequence again.

    Parameters
    ----------
    stage
        Attention with the contract of `llmsys.attention.contract`.
    spec
        The model's `cache_spec()`, which says what Dv is where v is None. Nothing is kept.

    Attributes
    ----------
    block_size : None
        There are no slots. A step of many sequences is made with this, and each of its chunks is a whole sequence.
    """

    block_size = None

    def __init__(self, stage: Attention = sdpa_attention, *, spec: CacheSpec | None = None):
        self.stage = stage
        self._value_sizes = {each.layer: each.Dv for each in spec.layers} if spec else {}

    def begin(self, tokens: Shaped[Tensor, "B T *C"]) -> Batch:
        return Batch(torch.arange(tokens.shape[1], device=tokens.device))

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
        q, k = rotate(q, turn), rotate(k, turn)
        if v is None:
            v = k[..., : value_size(k, turn, self._value_sizes.get(layer))]
        if not batch.chunks:
            return run_stage(self.stage, q, k, v, scale)
        return attend_in_groups(self.stage, q, self._groups(batch), functools.partial(_own_tokens, k, v), scale)

    def check_batch(self, batch: Batch) -> None:
        """Refuse chunks that are not whole sequences, and trees.

        Raises
        ------
        ValueError
            A chunk has computed tokens, or there is a tree. Says which, and what to do.
        """
        for i, chunk in enumerate(batch.chunks):
            if chunk.computed:
                raise ValueError(
                    f"chunks[{i}].computed must be 0 without a cache, got {chunk.computed}: give all tokens of the "
                    "sequence, or take a backend that keeps keys and values"
                )
        if batch.tree_mask is not None:
            raise ValueError("chunks: a stage knows no tree, so without a backend that does there can be none")

    def _groups(self, batch: Batch) -> list[Group]:
        self.check_batch(batch)
        return groups_of(batch, list(range(len(batch.chunks))))


def _own_tokens(k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """The keys and values of a group that are among the step's, without padding, which is on the left."""
    tokens = slice(group.start, group.start + group.sequences * group.queries)
    k, v = (heads_first(tokens_first(x)[tokens], group.sequences)[:, :, group.queries - group.keys :] for x in (k, v))
    return k, v
