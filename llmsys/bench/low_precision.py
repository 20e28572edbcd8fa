"""What an error is measured against: attention as eager code in 16 bits computes it.

No kernel can be held to the error of fp32: its inputs have 16 bits, and so has its output. The rule of this library is
that it errs at most twice as much as the code that anybody would write, in the same precision:

    S = q kᵀ · scale, rounded to 16 bits        P = softmax(S) in fp32, rounded to 16 bits        o = P v

Stage naive, the definition, keeps S in fp32 and is more exact than that.
"""

import torch
from torch import Tensor

from llmsys.attention.contract import check_arguments, visible_keys


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention that rounds to q's dtype after each operation, but for the softmax. The contract is that of a stage."""
    scale = check_arguments(q, k, v, scale=scale)
    Tq, Tk, G = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(G, dim=1) for x in (k, v))
    s = q @ k.mT * scale
    s = s.to(torch.promote_types(s.dtype, torch.float32))
    blind = torch.zeros(Tq, 1, dtype=torch.bool, device=q.device)  # queries that see no key
    if causal:
        visible = visible_keys(Tq, Tk, device=q.device)
        blind = ~visible.any(dim=-1, keepdim=True)
        s = s.masked_fill(~(visible | blind), float("-inf"))
    o = torch.softmax(s, dim=-1).masked_fill(blind, 0).to(v.dtype) @ v
    return (o, torch.logsumexp(s, dim=-1).masked_fill(blind[:, 0], float("-inf")).float()) if return_lse else o
