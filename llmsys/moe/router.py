"""The router of a mixture of experts: which k of E experts a token goes to, and how much each counts.

    logits  = x Wᵀ                        (N, E), in fp32
    scores  = softmax or sigmoid of them  (N, E)
    experts = the k best                  (N, K)
    weights = their scores, normalised    (N, K)

Two routers, and most models have one of them (DeepSeek-V2's is the first with the second's groups):

- *softmax, then the best k* (`route_softmax`): Switch with k = 1, GShard with 2, Mixtral and Qwen3-MoE. What keeps the
  loads even is a loss term (`llmsys.moe.losses.balance_loss`).
- *DeepSeek-V3's* (`route_sigmoid`): each expert's score is a sigmoid of its own logit. A bias is added to **choose**,
  and never to weigh; it is moved after each step against the loads (`llmsys.moe.losses.move_bias`). The experts lie in
  groups, on nodes of a cluster, and a token may only go to the best few groups: its copies cross to few nodes.

Two traps. Experts of groups that are out must be −∞ and not 0 before the best k are taken: biases are negative where
loads were high, and then 0 beats a group that is in. And the sum of chosen sigmoids may be 0 in fp32, for a bias may
choose experts that score nothing: 0/0.

Nothing here reads a number from a GPU, so a router may be in a CUDA graph. On a CPU, scores that are NaN are refused;
on a GPU nobody looks, and they are in the weights and in all that follows from them: `check_logits` looks.

Sources: https://arxiv.org/abs/2101.03961 (Switch, section 2.1), https://arxiv.org/abs/2006.16668 (GShard),
https://arxiv.org/abs/2401.04088 (Mixtral), https://arxiv.org/abs/2412.19437 (DeepSeek-V3, section 2.1.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

TINY = 1e-20
"""Added to a sum of scores before it divides them: DeepSeek-V3's. Zeros stay zeros, and are no 0/0."""


@dataclass(frozen=True)
class Routing:
    """Where the N tokens go. Best experts come first."""

    experts: Int[Tensor, "N K"]
    """int64, of 0 to E − 1; the k of a token are different ones."""
    weights: Float[Tensor, "N K"]
    """fp32: what each expert's output is multiplied by. Differentiable."""
    scores: Float[Tensor, "N E"]
    """fp32: of all experts, without the bias; what the balance loss is made of. Differentiable."""

    @property
    def loads(self) -> Int[Tensor, " E"]:
        """How many tokens each expert was given, int64. Counted anew at each use, and without waiting for a GPU."""
        counts = torch.zeros(self.scores.shape[1], dtype=torch.int64, device=self.experts.device)
        return counts.scatter_add_(0, self.experts.flatten(), torch.ones_like(self.experts.flatten()))


@dataclass(frozen=True)
class RouterConfig:
    """Everything about a router that is not a weight. `DEEPSEEK_V3` is one.

    Raises ValueError where k experts are not to be had, or the groups do not divide.
    """

    experts: int  #                                E
    k: int  #                                      experts of a token
    scoring: str = "softmax"  #                    or "sigmoid"
    normalise: bool = True  #                      weights of a token are divided by their sum
    scale: float = 1.0  #                          and multiplied by this
    bias: bool = False  #                          sigmoid alone: a bias that steers the choice
    groups: int = 1  #                             experts lie in so many groups,
    kept_groups: int = 1  #                        of which a token's experts are in the best few

    def __post_init__(self):
        check_choice(self.experts, self.k, self.groups, self.kept_groups)
        if self.scoring not in ("softmax", "sigmoid"):
            raise ValueError(f'scoring must be "softmax" or "sigmoid", got {self.scoring!r}')
        if self.scoring == "softmax" and self.bias:
            raise ValueError('scoring must be "sigmoid" for a router that has a bias')


def route_softmax(logits: Float[Tensor, "N E"], k: int, *, normalise: bool = True) -> Routing:
    """The k experts of the largest softmax. Their weights are those probabilities, divided by their sum.

    Parameters
    ----------
    normalise
        False leaves the probabilities as they are: Switch, where k is 1 and a weight of 1 would have no gradient.

    Raises
    ------
    ValueError
        k experts are not to be had, or a probability is NaN (seen on a CPU).
    """
    _, E = _sizes(logits)
    check_choice(E, k)
    check_logits(logits, wait=False)
    scores = torch.softmax(logits.float(), dim=-1)
    weights, experts = scores.topk(k, dim=-1)
    if normalise:  # the largest of E probabilities is 1/E at least: no 0/0
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(experts, weights, scores)


def route_softmax_in_groups(
    logits: Float[Tensor, "N E"],
    k: int,
    *,
    groups: int = 1,
    kept_groups: int = 1,
    normalise: bool = True,
    scale: float = 1.0,
) -> Routing:
    """DeepSeek-V2's router: `route_softmax`, but only experts of the best groups; weights are multiplied by `scale`.

    Experts e to e + E/groups − 1 are a group, and it counts as much as its best expert
    (https://arxiv.org/abs/2405.04434, section 2.2.2). Arguments and errors as those of `route_sigmoid`.
    """
    N, E = _sizes(logits)
    check_choice(E, k, groups, kept_groups)
    check_logits(logits, wait=False)
    scores = torch.softmax(logits.float(), dim=-1)
    grouped = scores.detach().view(N, groups, E // groups)
    out = torch.ones(N, groups, dtype=torch.bool, device=logits.device)
    out.scatter_(1, grouped.amax(dim=-1).topk(kept_groups, dim=-1).indices, False)
    experts = grouped.masked_fill(out[:, :, None], float("-inf")).view(N, E).topk(k, dim=-1).indices
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
    return Routing(experts, weights * scale, scores)


def route_sigmoid(
    logits: Float[Tensor, "N E"],
    k: int,
    *,
    bias: Float[Tensor, "..."] | None = None,
    groups: int = 1,
    kept_groups: int = 1,
    normalise: bool = True,
    scale: float = 1.0,
) -> Routing:
    """DeepSeek-V3's router: the k best of sigmoid + bias in the best groups; their weights are the sigmoids alone.

    Parameters
    ----------
    bias
        (E,). Added to choose, never to weigh. None: zeros.
    groups, kept_groups
        Experts e to e + E/groups − 1 are a group. It counts as much as its best two experts together (its only one,
        where it has one), bias included; experts outside of the best `kept_groups` are out.
    normalise, scale
        Weights are divided by their sum, and then multiplied by `scale`.

    Raises
    ------
    ValueError
        k experts are not to be had in the groups that are kept, the groups do not divide the experts, the bias is not
        one for each expert; or a logit is NaN, or a bias no finite number (both seen on a CPU).
    """
    N, E = _sizes(logits)
    check_choice(E, k, groups, kept_groups)
    check_logits(logits, wait=False)
    scores = torch.sigmoid(logits.float())
    choice = scores.detach()
    if bias is not None:
        if bias.shape != (E,):
            raise ValueError(f"bias must be ({E},), one for each expert, got {tuple(bias.shape)}")
        if _looks(bias) and not bias.isfinite().all():
            raise ValueError("bias must be finite numbers, or it chooses the same experts for ever")
        choice = choice + bias.float()
    if kept_groups < groups:
        grouped = choice.view(N, groups, E // groups)
        of_group = grouped.topk(min(2, E // groups), dim=-1).values.sum(dim=-1)  # (N, groups)
        out = torch.ones_like(of_group, dtype=torch.bool)
        out.scatter_(1, of_group.topk(kept_groups, dim=-1).indices, False)
        choice = grouped.masked_fill(out[:, :, None], float("-inf")).view(N, E)
    experts = choice.topk(k, dim=-1).indices
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
    return Routing(experts, weights * scale, scores)


class Router(nn.Module):
    """A router with its weights: a matrix, and a bias where `config` has one.

    `route` is what chooses: `route_softmax`, `route_softmax_in_groups` or `route_sigmoid`, as `config` says, or another
    function with the same arguments.

    The logits are computed in fp32, whatever the model's dtype: two experts whose scores are near each other should not
    change places by rounding. So the matrix is no product that a precision policy may replace, and every rank has all
    of it.

    Attributes
    ----------
    weight : (E, C)
    bias : (E,), fp32, or None
        A buffer, which checkpoints keep and no gradient reaches. It stays in fp32 where the model is cast: steps of
        0.001 are less than half of what bf16 has between 0.5 and 1, and would be lost.
    """

    def __init__(self, hidden_size: int, config: RouterConfig, *, route: Callable[..., Routing] | None = None):
        super().__init__()
        self.config = config
        self.plain = config.scoring == "softmax" and config.groups == config.scale == 1
        own = route_softmax if self.plain else route_softmax_in_groups if config.scoring == "softmax" else route_sigmoid
        self.route = route or own
        self.weight = nn.Parameter(torch.empty(config.experts, hidden_size))
        if not self.weight.is_meta:  # nothing to draw there
            nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("bias", torch.zeros(config.experts, dtype=torch.float32) if config.bias else None)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Routing:
        """Route each token; the rows count as N = all of them, in order. Errors as `route_softmax`, `route_sigmoid`."""
        logits = F.linear(x.reshape(-1, x.shape[-1]).float(), self.weight.float())  # (N, E)
        config = self.config
        if self.plain:
            return self.route(logits, config.k, normalise=config.normalise)
        bias = {} if config.scoring == "softmax" else {"bias": self.bias}
        return self.route(
            logits, config.k, **bias, groups=config.groups, kept_groups=config.kept_groups,
            normalise=config.normalise, scale=config.scale,
        )  # fmt: skip

    def _apply(self, fn, recurse=True):
        bias = self.bias
        super()._apply(fn, recurse)
        if bias is not None and self.bias.dtype != torch.float32:
            self.bias = bias.to(self.bias.device)
        return self


def check_choice(experts: int, k: int, groups: int = 1, kept_groups: int = 1) -> None:
    """Check that k of the experts can be chosen. Raises ValueError, which names what is wrong."""
    for name, value in (("experts", experts), ("k", k), ("groups", groups), ("kept_groups", kept_groups)):
        if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    if experts < 1:
        raise ValueError(f"experts must be at least 1, got {experts}")
    if not 1 <= k <= experts:
        raise ValueError(f"k must be from 1 to the {experts} experts that there are, got {k}")
    if groups < 1 or experts % groups:
        raise ValueError(f"groups must divide the {experts} experts into equal parts, got {groups}")
    if not 1 <= kept_groups <= groups:
        raise ValueError(f"kept_groups must be from 1 to the {groups} groups that there are, got {kept_groups}")
    if k > kept_groups * (experts // groups):
        raise ValueError(
            f"k must be at most the {kept_groups * (experts // groups)} experts of the {kept_groups} groups that are "
            f"kept, got {k}; keep more groups, or choose fewer experts"
        )


def _sizes(logits: Tensor) -> tuple[int, int]:
    """N and E. Raises ValueError where the logits are of another shape."""
    if logits.dim() != 2:
        raise ValueError(
            f"logits must be (tokens, experts), got {tuple(logits.shape)}; flatten what a token is found by: "
            "logits.flatten(0, -2)"
        )
    return logits.shape[0], logits.shape[1]


def check_logits(logits: Float[Tensor, "N E"], *, wait: bool = True) -> None:
    """Raise ValueError where a token has no best expert: a logit of it is NaN or +∞, or all are −∞.

    It waits for a GPU, unless `wait` is False: then it looks on a CPU alone.
    """
    if not (_looks(logits) or wait):
        return
    wrong = logits.isnan().any(dim=-1) | logits.isposinf().any(dim=-1) | logits.isneginf().all(dim=-1)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"logits must be numbers that can be compared, and token {row}'s are not: {int(logits[row].isnan().sum())} "
            f"of {logits.shape[1]} are NaN, {int(logits[row].isinf().sum())} infinite; look for what overflowed before "
            "the router"
        )


def _looks(x: Tensor) -> bool:
    """Whether a tensor's numbers are at hand: on a CPU, and not while torch traces."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


DEEPSEEK_V3 = RouterConfig(256, 8, "sigmoid", scale=2.5, bias=True, groups=8, kept_groups=4)
"""8 of 256 experts, from 4 of 8 groups."""
