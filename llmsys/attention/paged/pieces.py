"""Split KV: the keys of one sequence in pieces, and the combine.

A piece of a sequence is a sequence: it has the same queries, a part of the table's row, and its own length. So whoever
attends to S sequences in one launch attends to S · pieces of them in one launch, which keeps so many more programs
busy. Each piece comes back as (o, lse), and lesson 02's merge makes one of them:

    m = max_p lse_p        w_p = e^(lse_p − m)        o = Σ w_p o_p / Σ w_p        lse = m + ln Σ w_p

All of it is computed where the lengths are, and shapes depend on none: nothing waits, and a CUDA graph of it serves
other lengths. The kernels of `llmsys.attention.paged.split_kernels` divide the keys more evenly still.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.paged.one_token import Attend


def split_kv(
    attend: Attend,
    q: Float[Tensor, "S Hq D"],
    key_pages: Float[Tensor, "blocks P Hkv D"],
    value_pages: Float[Tensor, "blocks P Hkv D"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    pieces: int,
) -> tuple[Float[Tensor, "S Hq D"], Float[Tensor, "S Hq"]]:
    """o in q's dtype and lse in fp32, as one call of `attend` gives them for S · pieces sequences.

    A piece has whole pages, and none has more than ceil(pages of its sequence / pieces). `attend` must give 0 and −∞
    where there is no key; o should come in fp32, for it is rounded once more.
    """
    S, _, _ = q.shape
    M, P = block_table.shape[1], key_pages.shape[1]
    number = torch.arange(pieces, device=q.device)
    pages = (seq_lens + P - 1) // P  # (S,) that the sequence has
    each = ((pages + pieces - 1) // pieces)[:, None]  # (S, 1) that a piece has
    first = number * each  # (S, pieces)
    lengths = (seq_lens[:, None] - first * P).clamp(min=0).minimum(each * P)
    column = first[:, :, None] + torch.arange(-(-M // pieces), device=q.device)  # (S, pieces, a row's width)
    table = block_table[:, None].expand(S, pieces, M).gather(2, column.clamp(max=M - 1).long())
    parts = attend(q.repeat_interleave(pieces, 0), key_pages, value_pages, lengths.flatten(), table.flatten(0, 1))
    o, lse = (x.unflatten(0, (S, pieces)) for x in parts)
    m = lse.amax(1)  # (S, Hq)
    weight = torch.exp(lse - torch.where(m == float("-inf"), 0, m)[:, None])  # −∞ − (−∞) would be NaN
    l = weight.sum(1)
    o = (weight[..., None] * o).sum(1) / torch.where(l > 0, l, 1)[..., None]
    return o.to(q.dtype), m + torch.log(l)
