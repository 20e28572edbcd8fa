"""The layer that takes an MLP's place in a model: a router, its experts, and one that every token goes through.

    routing = router(x)                                         (N, K) of E experts
    y = Σ_j weights_j · expert_j(x)  +  shared(x)               (…, C)

Training it takes two things more, which `forward` returns and does not keep, for a layer that is computed again in the
backward pass would keep them twice (`llmsys.models.training_step`):

    y, routing = layer.moe(h)
    terms["balance"] = alpha * balance_loss(routing, sequences=B)       a loss term
    loads[f"moe.{i}"] = routing.loads                                   counts, which the trainer adds up

and after the optimiser's step, with the loads of all batches and ranks, `layer.moe.after_step(loads[f"moe.{i}"], rate)`
moves the router's bias.

Expert parallelism comes in from outside, as `dispatch`: what takes each token to where its experts are, has them run,
and brings the results back. The layer then makes only those experts that are here (`local`).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from llmsys.moe.experts import run_experts
from llmsys.moe.losses import move_bias
from llmsys.moe.router import Router, RouterConfig, Routing

RunExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The experts that are here: tokens (M, C), numbers of local experts (M, K) from 0, −1 for one that is elsewhere, and
weights (M, K) -> weighted sums (M, C). M may be any."""


@runtime_checkable
class Dispatch(Protocol):
    """Takes tokens to their experts and back."""

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor, run: RunExperts) -> Tensor:
        """x (N, C), experts (N, K) of all E, weights (N, K) -> (N, C), the weighted sums over each token's experts. It
        must be differentiable in x and weights."""


def stay_here(x: Tensor, experts: Tensor, weights: Tensor, run: RunExperts) -> Tensor:
    """The dispatch where all experts are here: nothing moves."""
    return run(x, experts, weights)


class Experts(nn.Module):
    """The matrices of `count` experts, each an MLP with a gated SiLU, and what computes with them: `run_experts` in one
    of its forms, or a function `form(x, experts, weights, gate_up, down)` with its contract.

    Attributes
    ----------
    gate_up : (count, 2 I, C)
        The gate's rows first.
    down : (count, C, I)
    """

    def __init__(self, count: int, hidden_size: int, expert_size: int, *, form: str | Callable[..., Tensor] = "auto"):
        super().__init__()
        self.form = form
        self.gate_up = nn.Parameter(torch.empty(count, 2 * expert_size, hidden_size))
        self.down = nn.Parameter(torch.empty(count, hidden_size, expert_size))
        for weight in (self.gate_up, self.down):
            if not weight.is_meta:  # nothing to draw there
                nn.init.normal_(weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "N C"], experts: Int[Tensor, "N K"], weights: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N C"]:
        """The weighted sums over each token's experts. Errors as `run_experts`."""
        if callable(self.form):
            return self.form(x, experts, weights, self.gate_up, self.down)
        return run_experts(x, experts, weights, self.gate_up, self.down, form=self.form)


class SharedExpert(nn.Module):
    """The expert of every token: an MLP whose matrices come from a model's factory, as those of any MLP."""

    def __init__(self, hidden_size: int, size: int, linear: Callable[..., nn.Module], name: str):
        super().__init__()
        self.gate_up = linear(hidden_size, 2 * size, (size, size), name=f"{name}.gate_up")
        self.down = linear(size, hidden_size, name=f"{name}.down")

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MixtureOfExperts(nn.Module):
    """Router, experts and, where it has a size, a shared expert.

    Parameters
    ----------
    hidden_size, expert_size
        C, and I, the width inside an expert.
    router
        What the router is like; `DEEPSEEK_V3`, say.
    shared_size
        The width inside the shared expert: I times their number, where a model counts several. 0: there is none.
    local
        The experts that are here, consecutive ones. None for all.
    dispatch
        Takes tokens to experts that are elsewhere, and back. None: all are here.
    linear
        Makes the shared expert's matrices, as `llmsys.models.modules.LinearFactory` says; plain ones by default. The
        router's matrix and the experts' are not from it: the first stays in fp32 and whole, and the others are one
        tensor for all experts.
    name
        The layer's name in the model, like "layers.3.moe", for the factory.
    form
        How experts are computed: `run_experts` says; or a function of your own (`Experts`).
    route
        Your own router (`llmsys.moe.router.Router`).

    Raises
    ------
    ValueError
        Sizes below 1; or experts that are elsewhere, and no dispatch that goes there.
    """

    def __init__(
        self,
        hidden_size: int,
        expert_size: int,
        router: RouterConfig,
        *,
        shared_size: int = 0,
        local: range | None = None,
        dispatch: Dispatch | None = None,
        linear: Callable[..., nn.Module] | None = None,
        name: str = "moe",
        form: str | Callable[..., Tensor] = "auto",
        route: Callable[..., Routing] | None = None,
    ):
        super().__init__()
        for what, size, least in (
            ("hidden_size", hidden_size, 1),
            ("expert_size", expert_size, 1),
            ("shared_size", shared_size, 0),
        ):
            if size < least:
                raise ValueError(f"{what} must be at least {least}, got {size}")
        local = range(router.experts) if local is None else local
        if local.step != 1 or not 0 <= local.start < local.stop <= router.experts:
            raise ValueError(f"local must be consecutive experts of range(0, {router.experts}), got {local}")
        if dispatch is None and len(local) < router.experts:
            raise ValueError(f"dispatch must be given where only {len(local)} of {router.experts} experts are here")
        self.local = local
        self.dispatch = stay_here if dispatch is None else dispatch
        self.router = Router(hidden_size, router, route=route)
        self.experts = Experts(len(local), hidden_size, expert_size, form=form)
        self.shared = None
        if shared_size:
            self.shared = SharedExpert(hidden_size, shared_size, linear or _plain, f"{name}.shared")

    def forward(self, x: Float[Tensor, "*rows C"]) -> tuple[Float[Tensor, "*rows C"], Routing]:
        """The layer's output, in x's dtype, and where the tokens went, the rows in order."""
        routing = self.router(x)
        y = self.dispatch(x.reshape(-1, x.shape[-1]), routing.experts, routing.weights, self.experts).reshape(x.shape)
        return (y if self.shared is None else y + self.shared(x)), routing

    def after_step(self, loads: Shaped[Tensor, "..."], rate: float) -> None:
        """Move the router's bias against the loads (E,) of a step, summed over batches and ranks (`move_bias`).

        A router without a bias stays as it is: a model need not ask which kind its layers have.
        """
        if self.router.bias is not None:
            move_bias(self.router.bias, loads.to(self.router.bias.device), rate)


def _plain(inputs: int, outputs: int, sections: tuple[int, ...] | None = None, *, name: str = "") -> nn.Module:
    linear = nn.Linear(inputs, outputs, bias=False)
    if not linear.weight.is_meta:
        nn.init.normal_(linear.weight, std=0.02)
    return linear
