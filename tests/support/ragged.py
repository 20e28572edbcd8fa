"""Random ragged batches over pages, and attention from the definition for them.

What a sequence has is kept dense here, too, so what is expected never goes through a table. Slots that belong to nobody
or lie beyond a length are NaN, and entries of the table beyond those that a length needs are −1 or huge.
"""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from llmsys.attention import naive_attention

PAD = 3  # tokens that belong to no sequence, where there are some


@dataclass(frozen=True)
class Shape:
    """Of a ragged batch: (tokens, keys) of each sequence, and sizes."""

    sequences: tuple[tuple[int, int], ...]
    page: int = 4
    G: int = 1
    Hkv: int = 2
    Dk: int = 8
    Dv: int = 8
    pad: int = 0
    trees: tuple[bool, ...] = ()  # which sequences have one

    @property
    def N(self) -> int:
        return sum(Tq for Tq, _ in self.sequences) + self.pad


@dataclass
class Ragged:
    """A batch of a shape: what attention over pages is handed, and K and V of each sequence, (Tk, Hkv, D)."""

    shape: Shape
    q: Tensor
    key_pages: Tensor
    value_pages: Tensor
    step: dict
    k: list[Tensor]
    v: list[Tensor]

    def expected(self) -> tuple[Tensor, Tensor]:
        """o (N, Hq, Dv) and lse (N, Hq) in float64, by the definition."""
        N, Hq, _ = self.q.shape
        o = torch.zeros(N, Hq, self.shape.Dv, dtype=torch.float64, device=self.q.device)
        lse = torch.full((N, Hq), float("-inf"), dtype=torch.float64, device=self.q.device)
        start = 0
        for i, (Tq, Tk) in enumerate(self.shape.sequences):
            rows = slice(start, start + Tq)
            start += Tq
            if not Tq:
                continue
            q, k, v = (x.double().transpose(0, 1)[None] for x in (self.q[rows], self.k[i], self.v[i]))
            if self.shape.trees and self.shape.trees[i]:
                mask = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device)
                mask[:, Tk - Tq :] = self.step["tree_mask"][rows, :Tq]
                s = q @ k.repeat_interleave(self.shape.G, 1).mT / math.sqrt(self.shape.Dk)
                s = s.masked_fill(~mask, float("-inf"))
                found = torch.softmax(s, -1) @ v.repeat_interleave(self.shape.G, 1), s.logsumexp(-1)
            else:
                found = naive_attention(q, k, v, causal=True, return_lse=True)
            o[rows], lse[rows] = found[0][0].transpose(0, 1), found[1][0].T.double()
        return o, lse


def ragged(
    shape: Shape, *, seed: int = 0, dtype=torch.float32, device="cpu", width: int = 0, wild: bool = True
) -> Ragged:
    """Draw tensors for a shape. `width`: of the table, at least; `wild`: entries that no length needs are anything."""
    random = torch.Generator().manual_seed(seed)
    page, Hkv = shape.page, shape.Hkv
    needed = [-(-Tk // page) for _, Tk in shape.sequences]
    blocks = sum(needed) + 2
    ids = torch.randperm(blocks, generator=random)
    pages = [torch.full((blocks, page, Hkv, D), math.nan) for D in (shape.Dk, shape.Dv)]
    table = torch.full((len(shape.sequences), max([width, 1, *needed])), -1, dtype=torch.int32)
    table[::2] = 2**31 - 1
    kept: tuple[list, list] = ([], [])
    for i, ((_, Tk), n) in enumerate(zip(shape.sequences, needed, strict=True)):
        mine, ids = ids[:n], ids[n:]
        table[i, :n] = mine
        for dense, memory in zip(kept, pages, strict=True):
            x = torch.randn(Tk, Hkv, memory.shape[3], generator=random)
            x = x.to(dtype).float()  # so that what is kept densely is what is in the pages
            dense.append(x.to(device))
            rows = torch.full((n * page, Hkv, memory.shape[3]), math.nan)
            rows[:Tk] = x
            memory[mine] = rows.unflatten(0, (n, page))
    q = torch.randn(shape.N, shape.G * Hkv, shape.Dk, generator=random)
    lengths = [Tq for Tq, _ in shape.sequences]
    step = {
        "query_start_loc": torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
        "seq_lens": torch.tensor([Tk for _, Tk in shape.sequences], dtype=torch.int32),
        "block_table": table,
        "tree_mask": tree_mask(shape, random) if any(shape.trees) else None,
    }
    step = {name: x if x is None else x.to(device) for name, x in step.items()}
    step |= {"max_query_len": max(lengths), "max_seq_len": max(Tk for _, Tk in shape.sequences)}
    q, *pages = (x.to(dtype).to(device) for x in (q, *pages))
    return Ragged(shape, q, *pages, step, *kept)


def tree_mask(shape: Shape, random: torch.Generator) -> Tensor:
    """(N, W): in a tree each token has an earlier one, or none, as its parent, and sees what that saw."""
    W = max(Tq for (Tq, _), has in zip(shape.sequences, shape.trees, strict=True) if has)
    mask = torch.zeros(shape.N, W, dtype=torch.bool)
    start = 0
    for (Tq, _), has in zip(shape.sequences, shape.trees, strict=True):
        for i in range(Tq if has else 0):
            parent = int(torch.randint(-1, i, (1,), generator=random)) if i else -1
            if parent >= 0:
                mask[start + i] = mask[start + parent]
            mask[start + i, i] = True
        start += Tq
    return mask


def shapes(longest: int = 40, most: int = 4, trees: bool = True):
    """Shapes of ragged batches: sequences of no token and of no key, one token, chunks, more queries than keys."""
    lengths = st.sampled_from([n for n in (0, 1, 2, 7, 16, 17, 31, 32, 33, longest) if n <= longest])
    chunks = st.sampled_from([n for n in (0, 1, 1, 1, 2, 3, 7, 17, 23) if n <= longest])

    @st.composite
    def draw_shape(draw):
        sequences = []
        for _ in range(draw(st.integers(1, most))):
            Tk = draw(lengths)
            Tq = draw(chunks)
            kind = draw(st.sampled_from(["cached", "cached", "padded", "prompt"]))
            Tq = {"cached": min(Tq, Tk), "padded": Tq, "prompt": min(Tk, 23)}[kind]
            sequences.append((Tq, Tk))
        has = [trees and 0 < Tq <= Tk and draw(st.integers(0, 3)) == 0 for Tq, Tk in sequences]
        return Shape(
            tuple(sequences), page=draw(st.sampled_from([1, 4, 5, 16])), G=draw(st.integers(1, 3)),
            Hkv=draw(st.integers(1, 2)), Dk=draw(st.sampled_from([1, 8, 17])), Dv=draw(st.sampled_from([1, 16, 20])),
            pad=draw(st.sampled_from([0, PAD])), trees=tuple(has),
        )  # fmt: skip

    return draw_shape()
