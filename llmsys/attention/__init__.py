"""Exact attention, one stage a lesson, all with one contract (`llmsys.attention.contract`).

    from llmsys.attention import STAGES
    o = STAGES["online"](q, k, v, causal=True)
"""

import difflib

from llmsys.attention.contract import Attention, check_arguments
from llmsys.attention.flash import flash_attention
from llmsys.attention.naive import naive_attention
from llmsys.attention.online import online_attention
from llmsys.attention.sdpa import sdpa_attention
from llmsys.attention.tiled import tiled_attention

STAGES: dict[str, Attention] = {
    "naive": naive_attention,
    "online": online_attention,
    "tiled": tiled_attention,
    "flash": flash_attention,
    "sdpa": sdpa_attention,
}
"""The stages in course order; last, the peer."""


def get_stage(attention: str | Attention) -> Attention:
    """The stage of that name; a callable is handed back as it is.

    Raises
    ------
    ValueError
        No stage has that name; the message lists those that are there.
    """
    if callable(attention):
        return attention
    if attention in STAGES:
        return STAGES[attention]
    near = difflib.get_close_matches(str(attention), STAGES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"attention must be one of {', '.join(STAGES)}, or a callable; got {attention!r}.{hint}")


__all__ = [
    "STAGES",
    "Attention",
    "check_arguments",
    "flash_attention",
    "get_stage",
    "naive_attention",
    "online_attention",
    "sdpa_attention",
    "tiled_attention",
]
