"""The peer: torch's fused attention, made to keep this course's contract.

`torch.nn.functional.scaled_dot_product_attention` is what the stages are measured against: it dispatches to
FlashAttention-2, cuDNN or its own kernels. Two of its habits differ from the contract. Its `is_causal` aligns the
mask **top-left**, so with a cache (Tq < Tk) a decoding query would see only the first key: silently wrong, and the
reason that the contract's argument has another name. And it does not hand out the log-sum-exp.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments, visible_keys, with_gradients_of_zero

_LSE_ROWS = 256  # where the log-sum-exp is asked for, scores of so many queries are held at a time


def sdpa_attention(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """torch's scaled_dot_product_attention. The contract is `llmsys.attention.contract`'s.

    The log-sum-exp is computed apart, with O(Tk) extra memory a row: time this stage without it.
    """
    scale = check_arguments(q, k, v, scale=scale)
    B, Hq, Tq, _ = q.shape
    Tk, Dv = v.shape[2:]
    blind = Tq if Tk == 0 else max(Tq - Tk, 0) if causal else 0  # leading queries that see no key
    if blind == Tq:  # torch is not asked about those
        o = with_gradients_of_zero(q.new_zeros(B, Hq, Tq, Dv), q, k, v)
    else:
        o = _causal_or_full(q[:, :, blind:], k, v, causal, scale)
        if blind:
            o = F.pad(o, (0, 0, blind, 0))
    return (o, _log_sum_exp(q, k, causal, scale)) if return_lse else o


def _causal_or_full(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    Tq, Tk, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    mask = None
    if causal and 1 < Tq < Tk:  # Tq = 1 sees everything; Tq = Tk is where top-left and bottom-right agree
        mask = visible_keys(Tq, Tk, device=q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and Tq == Tk, scale=scale, enable_gqa=grouped
    )


@torch.no_grad()
def _log_sum_exp(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk = k.shape[1:3]
    lse = q.new_full((B, Hq, Tq), float("-inf"), dtype=torch.float32)
    if Tk == 0 or lse.numel() == 0:
        return lse
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = k.to(wide)[:, :, None].mT  # (B, Hkv, 1, Dk, Tk)
    visible = visible_keys(Tq, Tk, device=q.device) if causal else None
    for start in range(0, Tq, _LSE_ROWS):
        some = slice(start, start + _LSE_ROWS)
        s = q[:, :, some].to(wide).reshape(B, Hkv, Hq // Hkv, -1, Dk) @ keys * scale
        if visible is not None:
            s = s.masked_fill(~visible[some], float("-inf"))
        lse[:, :, some] = torch.logsumexp(s, dim=-1).view(B, Hq, -1)
    return lse
