"""From gradients to new weights: AdamW with fp32 master weights, a cosine schedule, and a limit on the gradient.

**AdamW** keeps two running means for each weight w, of its gradient g and of g² (https://arxiv.org/abs/1711.05101):

    m = β₁ m + (1 − β₁) g        v = β₂ v + (1 − β₂) g²        both begin at 0, and are corrected for it: m̂, v̂
    w = w − η (m̂ / (√v̂ + ε) + λ w)

so a weight moves by about η whatever its gradient's size is, and decays by η λ. Norms' weights do not decay: they are
scales around 1, and pulling them to 0 would do what nothing asked for.

**Master weights.** bf16 has 8 bits of mantissa, so w + 0.001 w is w again: small steps would be lost, all of them.
The model may compute in bf16, but what is updated is a copy in fp32, and the model's weights are that copy, rounded.
Gradients of several backward passes are added up in fp32, too (https://arxiv.org/abs/1710.03740). That is 4 bytes for
the master, 4 + 4 for m and v and 4 for the gradient beside each weight's 2; for a model in fp32 the weights are their
own masters.

**Schedule.** The rate η rises linearly, while m and v are still guesses, and then falls along a half cosine
(https://arxiv.org/abs/1608.03983). **Clipping** shortens a gradient that is longer than `clip` over all weights
together to that length, so that one odd batch cannot throw the model off (https://arxiv.org/abs/1211.5063).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmsys.models.modules import plain_name


class Optimiser:
    """AdamW for a model's weights, in fp32 whatever the model's dtype is.

        loss.backward()          once, or several times
        optimiser.gather()       after each: move the gradients into the masters
        norm = optimiser.step(learning_rate, clip=1.0)

    Parameters
    ----------
    model
        Its weights that require a gradient are trained. It may be compiled: they have their plain names here.
    dtype
        What the model shall compute in: its weights become that, and their masters are made before. None leaves their
        dtype as it is. Buffers keep theirs.
    betas, eps, weight_decay
        β₁ and β₂, ε, λ.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        self.weights = {plain_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not self.weights:
            raise ValueError("model has no weight that requires a gradient: call model.requires_grad_(True)")
        self.masters = {}
        for name, weight in self.weights.items():
            if weight.dtype == torch.float32 == (dtype or weight.dtype):
                self.masters[name] = weight
            else:
                self.masters[name] = weight.detach().float().requires_grad_()
                weight.data = weight.detach().to(dtype or weight.dtype)
        decaying = [master for master in self.masters.values() if master.dim() > 1]
        others = [master for master in self.masters.values() if master.dim() <= 1]
        groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([group for group in groups if group["params"]], betas=betas, eps=eps, fused=True)

    def gather(self) -> None:
        """Add the gradients of the last backward pass to those of the masters, and drop them.

        Raises ValueError where a weight has none: something between it and the loss stopped the gradient.
        """
        for name, weight in self.weights.items():
            if weight.grad is None:
                raise no_gradient(name)
            self._move(name)

    def gather_at_once(self) -> None:
        """From now on move each gradient as soon as there is one, in place of `gather`: where weights do not get theirs
        at the same time, as in a pipeline, and a second one would be added to the first in fewer bits."""
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.register_post_accumulate_grad_hook(lambda _, name=name: self._move(name))

    def _move(self, name: str) -> None:
        weight, master = self.weights[name], self.masters[name]
        if master is not weight:
            gradient, weight.grad = weight.grad.float(), None
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    @torch.no_grad()
    def step(self, learning_rate: float, *, clip: float | None = 1.0, norm: Tensor | None = None) -> float:
        """Clip the gathered gradients, move the weights, forget the gradients. Returns the gradient's length before it
        was clipped; where that is no number, nothing is moved.

        `norm` is that length, where other ranks have a part of the gradient; None: it is all here. ValueError for a
        weight without a gradient.
        """
        if missing := [name for name, master in self.masters.items() if master.grad is None]:
            raise no_gradient(missing[0])
        if norm is None:
            norm = nn.utils.get_total_norm([master.grad for master in self.masters.values()])
        if math.isfinite(length := float(norm)):
            if clip is not None:
                nn.utils.clip_grads_with_norm_(self.masters.values(), clip, norm)
            for group in self.adamw.param_groups:
                group["lr"] = learning_rate
            self.adamw.step()
            for name, weight in self.weights.items():
                if self.masters[name] is not weight:
                    weight.copy_(self.masters[name])
        self.adamw.zero_grad()
        return length

    def state(self) -> dict[str, Tensor]:
        """m and v of each weight, as "m.NAME" and "v.NAME"; empty before the first step. The tensors themselves."""
        known = ((name, self.adamw.state.get(master)) for name, master in self.masters.items())
        return {
            f"{key}.{name}": state[theirs]
            for name, state in known
            if state
            for key, theirs in (("m", "exp_avg"), ("v", "exp_avg_sq"))
        }

    @torch.no_grad()
    def restore(self, masters: Mapping[str, Tensor], state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from there: master weights by name, what `state()` returned, and how many steps had been taken.

        ValueError where these cannot be this optimiser's: a name is missing or unknown, or a tensor has another shape
        or dtype, or numbers that no running mean has. Nothing has changed then.
        """
        wanted = {f"{key}.{name}" for name in self.masters for key in "mv"} if steps else set()
        if unknown := sorted(state.keys() - wanted):
            raise ValueError(f"{unknown[0]} is there, and after {steps} steps no weight of this model has that")
        for name, master in self.masters.items():
            if name not in masters or masters[name].shape != master.shape:
                raise ValueError(f"{name} of shape {tuple(master.shape)} is missing among the weights")
            for key in ("m", "v") if steps else ():
                _check_mean(f"{key}.{name}", state.get(f"{key}.{name}"), master)
        for name, master in self.masters.items():
            master.copy_(masters[name])
            self.weights[name].copy_(master)
            if steps:
                self.adamw.state[master] = {
                    "step": torch.tensor(float(steps), device=master.device),
                    "exp_avg": state[f"m.{name}"].to(master, copy=True),
                    "exp_avg_sq": state[f"v.{name}"].to(master, copy=True),
                }


def no_gradient(name: str) -> ValueError:
    """The error for a weight that has none."""
    return ValueError(
        f"{name} got no gradient: something between it and the loss is not differentiable. Is it an attention without "
        "a backward pass?"
    )


def _check_mean(name: str, mean: Tensor | None, master: Tensor) -> None:
    if mean is None:
        raise ValueError(f"{name} is missing")
    if mean.shape != master.shape or mean.dtype != torch.float32:
        raise ValueError(
            f"{name} must be float32 of shape {tuple(master.shape)}, got {mean.dtype} of {tuple(mean.shape)}"
        )
    low, high = mean.aminmax()  # NaN where there is one
    if not (low.isfinite() and high.isfinite()) or name.startswith("v.") and low < 0:
        raise ValueError(f"{name} holds numbers that are no running mean's: from {float(low)} to {float(high)}")


def cosine_schedule(step: int, *, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """The learning rate of step number `step`, counted from 0, of `steps`.

    It rises for `warmup` steps, of which the last has `peak`, then falls along a half cosine, and would be `final` one
    step after the last.

    Raises ValueError where warmup is not between 0 and steps.
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup must be from 0 to steps = {steps}, got {warmup}")
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2
