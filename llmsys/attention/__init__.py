"""Exact attention, one stage a lesson, all with one contract (`llmsys.attention.contract`).

    from llmsys.attention import STAGES
    o = STAGES["online"](q, k, v, causal=True)
"""

import difflib

from llmsys.attention.auto import auto_attention
from llmsys.attention.contract import Attention, check_arguments
from llmsys.attention.flash.forward import flash_attention
from llmsys.attention.hopper.forward import hopper_attention
from llmsys.attention.naive import naive_attention
from llmsys.attention.online import online_attention
from llmsys.attention.sdpa import sdpa_attention
from llmsys.attention.tiled import tiled_attention

STAGES: dict[str, Attention] = {
    "naive": naive_attention,
    "online": online_attention,
    "tiled": tiled_attention,
    "flash": flash_attention,
    "hopper": hopper_attention,
    "sdpa": sdpa_attention,
}
"""The stages in course order; last, the peer."""


def get_stage(attention: str | Attention) -> Attention:
    """The stage of that name, or "auto" for one that picks among them (`attention.auto`); a callable as it is.

    Raises
    ------
    ValueError
        No stage has that name; the message lists those that are there.
    """
    if callable(attention):
        return attention
    named = STAGES | {"auto": auto_attention}
    if attention in named:
        return named[attention]
    near = difflib.get_close_matches(str(attention), named, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"attention must be one of {', '.join(named)}, or a callable; got {attention!r}.{hint}")


__all__ = [
    "STAGES",
    "Attention",
    "auto_attention",
    "check_arguments",
    "flash_attention",
    "get_stage",
    "hopper_attention",
    "naive_attention",
    "online_attention",
    "sdpa_attention",
    "tiled_attention",
]
