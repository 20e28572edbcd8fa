"""Which tier this machine is, and `load_triton`, the one way by which this library imports Triton.

Every lesson runs on three tiers: PyTorch on the CPU; Triton kernels in Triton's interpreter, on the CPU; the same
kernels compiled, on a GPU. Triton decides between the last two once and for all, when it is first imported: with
`TRITON_INTERPRET=1` in the environment, `@triton.jit` makes interpreted functions for the rest of the process. So
that nobody has to remember this, kernels and notebooks begin with

    from llmsys.hardware.tier import load_triton
    triton, tl = load_triton()

which interprets exactly where there is no GPU. A value of `TRITON_INTERPRET` that is already set is respected: on a GPU
machine, `TRITON_INTERPRET=1` is how you step through a kernel in Python.
"""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Literal

import torch

Tier = Literal["gpu", "interpreter", "pytorch"]

RELEASED_TOGETHER = {"2.11": "3.6", "2.12": "3.7", "2.13": "3.7", "2.14": "3.8", "2.15": "3.9"}  # torch -> triton


def tier() -> Tier:
    """The best tier present: "gpu", "interpreter" (Triton without a GPU) or "pytorch" (no Triton)."""
    if not triton_installed():
        return "pytorch"
    return "gpu" if torch.cuda.is_available() else "interpreter"


def triton_installed() -> bool:
    """Whether `import triton` would find something. Does not import it."""
    if "triton" in sys.modules:
        return sys.modules["triton"] is not None  # a test blocks triton by putting None there
    return importlib.util.find_spec("triton") is not None


def load_triton() -> tuple[ModuleType, ModuleType]:
    """Import Triton in the mode that fits this machine, and return `(triton, triton.language)`.

    Raises
    ------
    ImportError
        Triton is not installed; the message says what to do on this platform.
    RuntimeError
        Something imported Triton before, in the other mode: only a new process can change that.
    """
    if not triton_installed():
        raise ImportError(_how_to_get_triton())
    wanted = os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1") == "1"
    import triton
    import triton.language as tl

    if _imported_interpreting() is not wanted:
        raise RuntimeError(
            f"Triton was imported {'compiling' if wanted else 'interpreting'} before llmsys could set "
            f"TRITON_INTERPRET={int(wanted)}, and the mode is fixed at the first import (a model class of transformers "
            "imports Triton, too). Restart the kernel, and import llmsys's Triton stages first."
        )
    return triton, tl


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter here. Loads Triton."""
    load_triton()
    return _imported_interpreting()


def triton_device() -> torch.device:
    """Where tensors must live for a Triton kernel to take them: "cpu" when interpreting, otherwise "cuda"."""
    return torch.device("cpu" if interpreting() else "cuda")


def _imported_interpreting() -> bool:
    # tl.cdiv and its like were decorated with @jit while triton was imported: their type tells the mode of that moment,
    # whatever the environment says by now.
    import triton.language as tl

    return type(tl.cdiv).__name__ == "InterpretedFunction"


def _how_to_get_triton() -> str:
    if sys.platform == "linux":
        release = ".".join(torch.__version__.split(".")[:2])
        if release not in RELEASED_TOGETHER:
            return "Triton is not installed: `pip install triton`."
        wanted = f"triton~={RELEASED_TOGETHER[release]}.0"
        return f"Triton is not installed: `pip install {wanted}` (the version that goes with torch {release})."
    return (
        "Triton has no release for this platform. Everything but the Triton kernels works here; for those, open the "
        "course in its dev container (.devcontainer/), in WSL 2, or on Colab."
    )
