"""Mixtures of experts: many small MLPs, of which each token goes through a few. The chapter, in the order in which to
read it:

    router   which experts a token goes to: softmax and the best k, or DeepSeek-V3's
    losses   what keeps their loads even: a loss term, or a bias
    experts/ the experts: tokens sorted by expert, grouped products, weighted sums
    layer    all of it, in the place of a model's MLP
    balance  what loads say, and on which GPU each expert is put, some of them twice
"""

from llmsys.moe.balance import LoadStatistics, Placement, load_statistics, place_experts
from llmsys.moe.experts import run_experts
from llmsys.moe.layer import Dispatch, Experts, MixtureOfExperts
from llmsys.moe.losses import balance_loss, move_bias
from llmsys.moe.router import (
    DEEPSEEK_V3,
    Router,
    RouterConfig,
    Routing,
    check_logits,
    route_sigmoid,
    route_softmax,
    route_softmax_in_groups,
)

__all__ = [
    "DEEPSEEK_V3",
    "Dispatch",
    "Experts",
    "LoadStatistics",
    "MixtureOfExperts",
    "Placement",
    "Router",
    "RouterConfig",
    "Routing",
    "balance_loss",
    "check_logits",
    "load_statistics",
    "move_bias",
    "place_experts",
    "route_sigmoid",
    "route_softmax",
    "route_softmax_in_groups",
    "run_experts",
]
