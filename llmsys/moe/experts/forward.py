"""All experts of a step: sorted, multiplied, added up. The contract is `llmsys.moe.experts.reference`'s."""

from jaxtyping import Float, Int
from torch import Tensor

from llmsys.hardware.tier import triton_installed
from llmsys.moe.experts.groups import Groups, group_by_expert
from llmsys.moe.experts.hopper import tile_rows
from llmsys.moe.experts.matmul import grouped_matmul
from llmsys.moe.experts.reference import check_experts, experts_loop, experts_torch
from llmsys.moe.experts.rows import gated_silu, permute, unpermute


def run_experts(
    x: Float[Tensor, "N C"],
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E I2 C"],
    down: Float[Tensor, "E C I"],
    *,
    form: str = "auto",
    groups: Groups | None = None,
) -> Float[Tensor, "N C"]:
    """Σ_j weights_j · down(silu(gate x) · up x) over each token's experts. Differentiable in all but `experts`.

    Parameters
    ----------
    experts
        −1 is nowhere: it adds nothing.
    form
        "triton" are the kernels: on a GPU, or in the interpreter. They read no size on the host, so forward and
        backward may be in a CUDA graph, which then serves any loads. "torch" are torch's own products, for a CPU;
        "loop" is the reference. "auto" takes the kernels on a GPU that Triton knows, else torch's products.
    groups
        `group_by_expert(experts, E)`, where it has been made already: kernels alone use it.

    Raises
    ------
    ValueError
        Shapes, types or places do not go together; an expert's number is none (seen on a CPU); or an unknown form.
    """
    if form not in ("auto", "loop", "torch", "triton"):
        raise ValueError(f'form must be "auto", "loop", "torch" or "triton", got {form!r}')
    check_experts(x, experts, weights, gate_up, down)
    if form == "auto":
        form = "triton" if x.is_cuda and triton_installed() else "torch"
    if form != "triton":
        return (experts_loop if form == "loop" else experts_torch)(x, experts, weights, gate_up, down)
    if groups is None:
        block_m = tile_rows(x, experts.numel(), len(gate_up))
        groups = group_by_expert(experts, len(gate_up), block_m=block_m)
    rows = permute(x, groups)  # (R, C)
    inner = gated_silu(grouped_matmul(rows, gate_up, groups), groups)  # (R, I)
    return unpermute(grouped_matmul(inner, down, groups), weights, groups)  # (N, C)
