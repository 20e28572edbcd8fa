"""How steps are executed: what makes an engine fast, each part of it with a switch.

    Engine(model, execution=Execution(graphs=False))

None changes a token (but for the last bits of logits, which are summed in another order).
"""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class Execution:
    """How steps are executed. Each part can be switched on and off; None: on where it helps and can be (on a GPU).

    ValueError at once where a switch is none, or `graph_memory` or `capture` is not what it may be.
    """

    ahead: bool | None = None
    """The next step is planned and queued while one runs."""
    graphs: bool | None = None
    """Steps are CUDA graphs, one for each of some sizes. On a CPU, where True, the same code runs without a graph."""
    fused: bool | None = None
    """The model's small operations are fused kernels. They need Triton: a GPU, or the interpreter."""
    few_kernels: bool | None = None
    """Steps of few sequences are done in a few kernels a layer, where the model is one that these can do."""
    mixed_graphs: bool | None = None
    """Not decode steps alone are graphs, but those with prompts in them, too. None: where decode steps are."""
    graph_memory: int | None = None
    """Bytes that captured graphs may take; None: a share of what is free."""
    capture: Literal["on demand", "at start"] = "on demand"
    """When graphs are captured: each before the first step that it is for, or all as the engine is made."""

    def __post_init__(self):
        for field in fields(self)[:5]:
            if (value := getattr(self, field.name)) not in (None, True, False) or not isinstance(value, bool | None):
                raise ValueError(f"{field.name} must be True, False or None, got {value!r}")
        bytes_ = self.graph_memory
        if bytes_ is not None and (isinstance(bytes_, bool) or not isinstance(bytes_, int) or bytes_ < 0):
            raise ValueError(f"graph_memory must be a whole number of bytes from 0 on, or None, got {bytes_!r}")
        if self.capture not in ("on demand", "at start"):
            raise ValueError(f'capture must be "on demand" or "at start", got {self.capture!r}')
