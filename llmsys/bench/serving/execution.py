"""The ways to execute a step that are compared: everything on, each part off in turn, and everything off."""

from dataclasses import replace

import torch

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
