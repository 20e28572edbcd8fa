"""The ways to execute a step that are compared: everything on, each part off in turn, and everything off."""

import inspect

import torch
from torch import nn

from llmsys.serving import Engine

PARTS = {
    "ahead": "the next step is planned while one runs",
    "graphs": "CUDA graphs",
    "fused": "fused kernels",
    "few_kernels": "few kernels for few requests",
}
"""Of `Execution`, and what each of them is."""
ALL, NONE = "all on", "all off"


def ways() -> dict[str, dict[str, bool | None]]:
    """Name -> the fields of `Execution`. On a GPU a part that is on decides itself where it helps; on a CPU those are
    on that need no GPU."""
    gpu = torch.cuda.is_available()
    able = PARTS if gpu else ("ahead", "graphs")
    on = {part: (None if gpu else True) if part in able else False for part in PARTS}
    found = {ALL: on}
    found |= {f"without {part}": on | {part: False} for part in able}
    return found | {NONE: dict.fromkeys(PARTS, False)}


def engine_of(model: nn.Module, way: dict[str, bool | None], **settings) -> Engine:
    """An engine that executes steps so."""
    if "execution" in inspect.signature(Engine.__init__).parameters:
        from llmsys.serving.execution import Execution

        settings["execution"] = Execution(**way)
    return Engine(model, **settings)
