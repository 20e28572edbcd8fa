"""Exact attention, one stage a lesson, all with one contract (`llmsys.attention.contract`).

    from llmsys.attention import STAGES
    o = STAGES["online"](q, k, v, causal=True)
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

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


def get_stage(attention: str | Attention, *, backends: Iterable[str] = ()) -> Attention:
    """The stage of that name, or "auto" for one that picks among them (`attention.auto`); a callable as it is.

    `backends` are names that the caller takes besides (`llmsys.cache.as_backend`): the message lists them, too.

    Raises
    ------
    ValueError
        No stage has that name; the message lists those that are there.
    """
    if callable(attention):
        return attention
    named = STAGES | {"auto": auto_attention}
    if isinstance(attention, str) and attention in named:
        return named[attention]
    backends = list(backends)
    names = [*named, *backends]
    near = difflib.get_close_matches(str(attention), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    others = f" (stages), {', '.join(backends)} (backends), a callable or a backend" if backends else ", or a callable"
    raise ValueError(f"attention must be one of {', '.join(named)}{others}; got {attention!r}.{hint}")


__path__.append(str(Path(__file__).parents[1] / "moved" / "attention"))  # names from before: llmsys.moved
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
