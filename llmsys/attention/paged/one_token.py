"""Decoding over pages with a kernel that knows one new token a sequence: its launch, and its place in a model.

    o, lse = attend_one_token(q, key_pages, value_pages, seq_lens, block_table)
    cache = PagedCache(for_model(attend_one_token), num_blocks=1000)

A kernel of one's own takes the library's place by `kernel=`. What is launched depends on shapes alone, so nothing waits
for the GPU, and a CUDA graph of it serves other lengths.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E, block_of
from llmsys.attention.paged.arguments import PagedAttention, check_pages
from llmsys.attention.paged.reference import paged_attention_reference
from llmsys.attention.paged.write import check_device

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""attend(q, key_pages, value_pages, seq_lens, block_table) -> (o, lse), as `attend_one_token` does."""


def attend_one_token(
    q: Float[Tensor, "S Hq D"],
    key_pages: Float[Tensor, "blocks P Hkv D"],
    value_pages: Float[Tensor, "blocks P Hkv D"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    *,
    scale: float | None = None,
    dtype: torch.dtype | None = None,
    block_n: int = 64,
    kernel=None,
) -> tuple[Float[Tensor, "S Hq D"], Float[Tensor, "S Hq"]]:
    """Attention of one token of each sequence to all keys of the sequence: o, and lse in fp32.

    Parameters
    ----------
    q
        float32 or float16, or bfloat16 where the kernel is compiled; on the device that Triton runs on.
    key_pages, value_pages
        Pages of P slots, P being any number. They may lie apart, as those of one layer of many do; the elements of a
        head must be adjacent. Nothing is copied.
    seq_lens
        Keys of each sequence. None: o = 0, lse = −∞.
    block_table
        The pages of each sequence in order. Entries that its length does not reach may be anything.
    scale
        None: 1/√D.
    dtype
        Of o; None for q's. The kernel's sums are in fp32, and what is to be added up further is better kept so.
    block_n
        Keys of a tile, a power of two from 16.
    kernel
        A kernel with the arguments of `one_token_kernel.one_token_kernel`, in its place.

    Raises
    ------
    ValueError
        Wrong shapes, dtypes, devices or tiles; the message says what was expected.
    """
    scale = check_pages(q, key_pages, value_pages, scale=scale)
    S, Hq, D = q.shape
    if value_pages.shape[3] != D:
        raise ValueError(f"value_pages must have heads of {D} as the keys here, got {value_pages.shape[3]}")
    for name, x, shape in (("seq_lens", seq_lens, (S,)), ("block_table", block_table, (S, -1))):
        if x.is_floating_point() or x.dim() != len(shape) or x.shape[0] != S or x.device != q.device:
            raise ValueError(
                f"{name} must be whole numbers {'(S,)' if name == 'seq_lens' else '(S, M)'} on {q.device}, for q has "
                f"S = {S} tokens; got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
            )
    for name, x in (("key_pages", key_pages), ("value_pages", value_pages)):
        if x.stride(3) != 1:
            raise ValueError(f"{name} must have a stride of 1 in the last dimension, got {x.stride(3)}")
    if block_n < 16 or block_n & (block_n - 1):
        raise ValueError(f"block_n must be a power of two from 16, which tl.dot wants, got {block_n}")
    if kernel is None:
        check_device(q)
        from llmsys.attention.paged.one_token_kernel import one_token_kernel as kernel  # Triton: not before now
    page, Hkv = key_pages.shape[1:3]
    o = torch.empty(S, Hq, D, dtype=dtype or q.dtype, device=q.device)
    lse = torch.empty(S, Hq, dtype=torch.float32, device=q.device)
    seq_lens, block_table = seq_lens.to(torch.int32).contiguous(), block_table.to(torch.int32)
    if block_table.stride(1) != 1:
        block_table = block_table.contiguous()
    if S:
        with torch.cuda.device_of(q):
            kernel[(S, Hkv)](
                q.contiguous(), key_pages, value_pages, o, lse, block_table, seq_lens, *key_pages.stride()[:3],
                *value_pages.stride()[:3], block_table.stride(0), scale * LOG2_E, G=Hq // Hkv, D=D, PAGE=page,
                BLOCK_G=block_of(Hq // Hkv), BLOCK_N=block_n, BLOCK_D=block_of(D),
            )  # fmt: skip
    return o, lse


def for_model(attend: Attend) -> PagedAttention:
    """Attention as a model's paged cache asks for it, by a function that attends with one token a sequence.

    Where a sequence brings more than one token, a prompt say, the form in plain PyTorch attends. Token n of a step is
    looked up by n in `query_start_loc`: a sequence may bring none, and padding at the end belongs to nobody.
    """

    def attention(
        q, key_pages, value_pages, *, query_start_loc, seq_lens, block_table, max_query_len, max_seq_len, scale=None,
        tree_mask=None, return_lse=False,
    ):  # fmt: skip
        if max_query_len > 1 or q.shape[0] == 0:
            return paged_attention_reference(
                q, key_pages, value_pages, query_start_loc=query_start_loc, seq_lens=seq_lens, block_table=block_table,
                scale=scale, tree_mask=tree_mask, return_lse=return_lse,
            )  # fmt: skip
        token = torch.arange(q.shape[0], dtype=torch.int32, device=q.device)
        whose = torch.searchsorted(query_start_loc[1:].contiguous(), token, right=True)
        belongs = whose < seq_lens.shape[0]
        whose = whose.clamp(max=seq_lens.shape[0] - 1)
        lengths = torch.where(belongs, seq_lens[whose], 0)
        scaled = q if scale is None else q * (scale * math.sqrt(q.shape[2]))
        o, lse = attend(scaled, key_pages, value_pages, lengths, block_table[whose])
        o = o.to(q.dtype)
        return (o, lse) if return_lse else o

    return attention
