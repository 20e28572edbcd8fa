"""What experts compute, twice in plain PyTorch: a loop to read, and products to use on a CPU.

    f(x, experts, weights, gate_up, down) -> out

    x        (N, C)         tokens
    experts  (N, K)         where they go: of 0 to E − 1, or −1 for nowhere
    weights  (N, K)         how much each expert counts, fp32
    gate_up  (E, 2 I, C)    of each expert, the gate's rows first
    down     (E, C, I)
    out      (N, C)         Σ_j weights_j · down(silu(gate x) · up x), in x's dtype

Both are differentiable in all but `experts`. What is summed over a token's experts is summed in fp32.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.moe.experts.groups import group_by_expert


def experts_loop(
    x: Float[Tensor, "N C"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E I2 C"],
    down: Float[Tensor, "E C I"],
) -> Float[Tensor, "N C"]:
    """The reference: token by token, expert by expert. It reads every expert's number on the host."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for n, chosen in enumerate(experts.tolist()):
        for j, e in enumerate(chosen):
            if e >= 0:
                out[n] += weights[n, j] * one_expert(x[n], gate_up[e], down[e]).float()
    return out.to(x.dtype)


def experts_torch(
    x: Float[Tensor, "N C"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E I2 C"],
    down: Float[Tensor, "E C I"],
) -> Float[Tensor, "N C"]:
    """The form for a CPU: tokens sorted by expert, and two of torch's own products for each expert that has some.

    It reads on the host how many each has, so on a GPU it waits.
    """
    groups = group_by_expert(experts, len(gate_up))
    starts = groups.starts.tolist()
    order = groups.order[: starts[-1]].long()
    token = order // groups.top
    rows = x[token].split([stop - start for start, stop in zip(starts, starts[1:], strict=False)])
    # One unbind, and not an index for each expert: the gradient of an index is as large as all experts together.
    done = [one_expert(*each) for each in zip(rows, gate_up.unbind(), down.unbind(), strict=True)]
    weighted = torch.cat(done).float() * weights.flatten()[order, None]
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    return out.index_add(0, token, weighted).to(x.dtype)


def one_expert(
    x: Float[Tensor, "*rows C"], gate_up: Float[Tensor, "I2 C"], down: Float[Tensor, "C I"]
) -> Float[Tensor, "*rows C"]:
    """An MLP with a gated SiLU (https://arxiv.org/abs/2002.05202)."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def check_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> None:
    """Check what experts are handed. Raises ValueError, which names the argument and what was expected."""
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x must be (N, C) floating-point numbers, got {x.dtype} of shape {tuple(x.shape)}")
    N, C = x.shape
    if gate_up.dim() != 3 or down.dim() != 3 or 0 in (*gate_up.shape, *down.shape):
        raise ValueError(
            f"gate_up and down must be (E, 2 I, C) and (E, C, I), none of them 0, got {tuple(gate_up.shape)} and "
            f"{tuple(down.shape)}"
        )
    E, _, I = down.shape  # noqa: E741
    if gate_up.shape != (E, 2 * I, C) or down.shape[1] != C:
        raise ValueError(
            f"gate_up and down must be (E, 2 I, C) and (E, C, I) with x's C = {C}, got {tuple(gate_up.shape)} and "
            f"{tuple(down.shape)}"
        )
    for name, w in (("gate_up", gate_up), ("down", down)):
        if w.dtype != x.dtype or w.device != x.device:
            raise ValueError(f"{name} must be {x.dtype} on {x.device} as x, got {w.dtype} on {w.device}")
    if experts.dim() != 2 or len(experts) != N or experts.is_floating_point():
        raise ValueError(
            f"experts must be whole numbers (N, K), a row for each of x's {N} tokens, got {experts.dtype} of shape "
            f"{tuple(experts.shape)}"
        )
    if weights.shape != experts.shape or weights.dtype != torch.float32:
        raise ValueError(
            f"weights must be float32 {tuple(experts.shape)} as experts, got {weights.dtype} {tuple(weights.shape)}"
        )
    for name, each in (("experts", experts), ("weights", weights)):
        if each.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x, got {each.device}")
