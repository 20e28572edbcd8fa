"""Latent attention over pages, as a model's paged cache asks for it.

The contract is that of attention over pages (`llmsys.attention.paged.arguments`), with one key head, of L + R columns,
and values that are a view of the pages' first L columns. So a paged cache whose values are in its keys needs nothing
else: any number of query tokens a sequence, causal, with or without a tree, and no length on the host.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmsys.attention.latent.decode import LARGEST_LATENT, LARGEST_ROPE, latent_decode
from llmsys.attention.paged.arguments import check_pages


def paged_latent_attention(
    q: Float[Tensor, "N Hq LR"],
    key_pages: Float[Tensor, "blocks P 1 LR"],
    value_pages: Float[Tensor, "blocks P 1 L"],
    *,
    query_start_loc: Int[Tensor, " S1"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    max_query_len: int,
    max_seq_len: int,
    scale: float | None = None,
    tree_mask: Bool[Tensor, "N W"] | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "N Hq L"] | tuple[Float[Tensor, "N Hq L"], Float[Tensor, "N Hq"]]:
    """Attention of ragged sequences to latents in pages, by `latent_decode`: on a GPU, or in Triton's interpreter.

    Parameters
    ----------
    q
        Absorbed queries (`llmsys.attention.latent.absorb_queries`), turned; fp32, fp16 or bf16.
    key_pages, value_pages
        [c ; r] of each slot, and a view of its c. L at most 512, R at most 128.
    scale
        That of the naive form, 1/√(Dn + R), which cannot be seen here: it must be given.

    Raises
    ------
    ValueError
        The contract is broken, a size is too large, or there is no scale; the message says what was expected.
    """
    if scale is None:
        raise ValueError(
            "scale must be given for absorbed queries: 1/√(Dn + R) of the queries before they were absorbed (1/√192 "
            "for DeepSeek-V3), not of the latents' size"
        )
    scale = check_pages(q, key_pages, value_pages, scale=scale)
    (D, L), Hkv = (q.shape[2], value_pages.shape[3]), key_pages.shape[2]
    if Hkv != 1:
        raise ValueError(f"key_pages must have one head, which all query heads share, got {Hkv}")
    if value_pages.data_ptr() != key_pages.data_ptr() or value_pages.stride() != key_pages.stride() or L >= D:
        raise ValueError(
            f"value_pages must be a view of key_pages' first L columns, key_pages[..., :L], L below {D}; got a tensor "
            f"of its own of {L} columns"
        )
    if L > LARGEST_LATENT or D - L > LARGEST_ROPE:
        raise ValueError(
            f"key_pages must have at most {LARGEST_LATENT} + {LARGEST_ROPE} columns for the kernels, got {L} + {D - L}"
        )
    return latent_decode(
        q, key_pages[:, :, 0], latent=L, query_start_loc=query_start_loc, seq_lens=seq_lens, block_table=block_table,
        max_query_len=max_query_len, scale=scale, tree_mask=tree_mask, return_lse=return_lse,
    )  # fmt: skip
