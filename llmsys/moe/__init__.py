"""Mixtures of experts: many small MLPs, of which each token goes through a few. The chapter, in the order in which to
read it:

    router   which experts a token goes to: softmax and the best k, or DeepSeek-V3's
    losses   what keeps their loads even: a loss term, or a bias
"""

from llmsys.moe.losses import balance_loss, move_bias
from llmsys.moe.router import DEEPSEEK_V3, Router, RouterConfig, Routing, check_logits, route_sigmoid, route_softmax

__all__ = [
    "DEEPSEEK_V3",
    "Router",
    "RouterConfig",
    "Routing",
    "balance_loss",
    "check_logits",
    "move_bias",
    "route_sigmoid",
    "route_softmax",
]
