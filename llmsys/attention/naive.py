"""Stage 1, naive attention: two matrix products with a softmax between them, as the paper writes it.

    S = q kᵀ · scale          (B, Hq, Tq, Tk)   the scores
    P = softmax(S)            (B, Hq, Tq, Tk)   each row sums to one
    o = P v                   (B, Hq, Tq, Dv)

It is the definition, so every other stage is tested against it; and it is the problem: S and P have Tq · Tk elements
a head, they are written to memory and read back, and they are nearly all the memory that attention takes
(https://arxiv.org/abs/1706.03762, section 3.2.1).

Grouped queries need no copies of K: the G query heads that share a key head are G · Tq more rows of the same product.

In 16 bits, S is made and kept in fp32: a score has no upper bound, fp16 ends at 65,504, and a score around 100 that is
rounded to the 8 bits of bf16 is off by up to 1/4, which is a factor of e^(1/4) in its weight. What is between 0 and 1
suffers less: P is rounded to the dtype of v for the second product, as in the fused kernels, and o has q's dtype.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import Attention, check_arguments, visible_keys, with_gradients_of_zero


def softmax_rows(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """torch's softmax over the last dimension."""
    return torch.softmax(x, dim=-1)


def naive_attention(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    softmax=softmax_rows,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """Attention that stores the whole score matrix. The contract is `llmsys.attention.contract`'s.

    `softmax` turns scores (..., Tk), in fp32 or wider, into weights of the same shape: lesson 02 puts the learner's
    here. It never sees a row without a key.
    """
    scale = check_arguments(q, k, v, scale=scale)
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    if Tk == 0:  # no row sees a key, and a maximum over nothing does not exist
        o, lse = q.new_zeros(B, Hq, Tq, Dv), q.new_full((B, Hq, Tq), float("-inf"), dtype=torch.float32)
        o = with_gradients_of_zero(o, q, k, v)
        return (o, lse) if return_lse else o

    wide = torch.promote_types(q.dtype, torch.float32)
    rows = q.reshape(B, Hkv, Hq // Hkv * Tq, Dk)  # a group's query heads, one below the other
    s = (rows.to(wide) @ k.to(wide).mT).view(B, Hq, Tq, Tk) * scale
    if causal:
        visible = visible_keys(Tq, Tk, device=q.device)  # (Tq, Tk)
        blind = ~visible.any(dim=-1, keepdim=True)  #      (Tq, 1): the query comes before every key
        # A row of nothing but -inf would be 0/0, here and in the gradient: give it any scores, then weights of 0.
        s = s.masked_fill(~(visible | blind), float("-inf"))
        p = softmax(s).masked_fill(blind, 0)
    else:
        p = softmax(s)
    o = (p.to(v.dtype).view(B, Hkv, Hq // Hkv * Tq, Tk) @ v).view(B, Hq, Tq, Dv)
    if not return_lse:
        return o
    lse = torch.logsumexp(s, dim=-1)
    if causal:
        lse = lse.masked_fill(blind[:, 0], float("-inf"))
    return o, lse.float()


def attention_with(softmax) -> Attention:
    """Naive attention around another softmax over the last dimension, with a stage's contract: a way into the model."""

    def attention(q, k, v, *, causal=False, scale=None, return_lse=False):
        return naive_attention(q, k, v, causal=causal, scale=scale, return_lse=return_lse, softmax=softmax)

    return attention
