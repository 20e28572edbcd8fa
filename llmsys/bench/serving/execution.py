"""The ways to execute a step that are compared: everything on, each part off in turn, and everything off."""

import inspect
from dataclasses import replace

import torch
from torch import nn

from llmsys.serving import Engine
from llmsys.serving.execution import Execution

PARTS = ("ahead", "graphs", "fused", "few_kernels")
"""The switches of `Execution`."""
ALL, NONE = "all on", "all off"


def ways() -> dict[str, Execution]:
    """Name -> how steps are executed. On a GPU a part that is on decides itself where it helps; on a CPU those are on
    that need no GPU."""
    gpu = torch.cuda.is_available()
    able = PARTS if gpu else ("ahead", "graphs")
    none = Execution(**dict.fromkeys(PARTS, False))
    on = replace(none, **dict.fromkeys(able, None if gpu else True))
    return {ALL: on, **{f"without {part}": replace(on, **{part: False}) for part in able}, NONE: none}


def engine_of(model: nn.Module, way: Execution, **settings) -> Engine:
    """An engine that executes steps so."""
    if "execution" in inspect.signature(Engine.__init__).parameters:
        settings["execution"] = way
    return Engine(model, **settings)
