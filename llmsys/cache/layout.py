"""Where the parts of a step lie in the one buffer that is copied to the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """For how many tokens, sequences and so on a step's buffer has room, and where in it they lie.

    Each part begins on a multiple of 64 bytes, whatever the sizes of those before it: Triton compiles a kernel anew for
    pointers that are not aligned as they were.
    """

    tokens: int  #     N
    sequences: int  #  S
    blocks: int = 0  # M, the width of the block table
    logits: int = 0  # L
    tree: int = 0  #   W, the width of the tree mask; 0 for none

    @property
    def size(self) -> int:
        """Elements of the buffer, int32."""
        return sum(_room(name, shape) for name, shape in self.shapes.items())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each part of a `Batch`, in the buffer's order."""
        N, S = self.tokens, self.sequences
        return {
            "tokens": (N,),
            "positions": (N,),
            "slot_mapping": (N,),
            "query_start_loc": (S + 1,),
            "seq_lens": (S,),
            "block_table": (S, self.blocks),
            "logits_indices": (self.logits,),
            "tree_mask": (N, self.tree),
        }

    def views(self, buffer: np.ndarray | Tensor) -> dict[str, np.ndarray | Tensor]:
        """The parts as views of the buffer: the tree mask bool, four entries an element, and all others int32."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            room = _room(name, shape)
            part = buffer[start : start + room]
            if name == "tree_mask":
                part = part.view(torch.bool if isinstance(part, Tensor) else np.bool_)
            found[name] = part[: math.prod(shape)].reshape(shape)
            start += room
        return found

    def lacks(self, other: "Layout") -> str | None:
        """The first of the sizes in which `other` has more, in words; None where all of it fits in here."""
        for name in self.__dataclass_fields__:
            if getattr(other, name) > getattr(self, name):
                return f"{name} = {getattr(self, name)}, where {getattr(other, name)} are needed"
        return None


def _room(name: str, shape: tuple[int, ...]) -> int:
    elements = math.prod(shape)
    if name == "tree_mask":
        elements = -(-elements // 4)
    return -(-elements // 16) * 16
