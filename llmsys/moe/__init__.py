"""Mixtures of experts: many small MLPs, of which each token goes through a few. The chapter, in the order in which to
read it:

    router   which experts a token goes to: softmax and the best k, or DeepSeek-V3's
    losses   what keeps their loads even: a loss term, or a bias
    balance  what loads say, and on which GPU each expert is put, some of them twice
"""

from llmsys.moe.balance import LoadStatistics, Placement, load_statistics, place_experts
from llmsys.moe.losses import balance_loss, move_bias
from llmsys.moe.router import DEEPSEEK_V3, Router, RouterConfig, Routing, check_logits, route_sigmoid, route_softmax

__all__ = [
    "DEEPSEEK_V3",
    "LoadStatistics",
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
]
