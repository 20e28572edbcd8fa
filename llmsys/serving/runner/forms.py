"""Which form of a model's forward a step is computed by.

    plain          the model itself: many small operations, for any model, on anything
    fused          its small operations are Triton kernels; the matrices are the model's
    few kernels    a decode step of few sequences in a few kernels a layer

All are called alike, `forward(tokens, cache, batch)`, and share the model's weights.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmsys.cache import PagedCache
from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.models.llama import Llama
from llmsys.serving.execution import Execution


class Form(NamedTuple):
    """One of them."""

    name: str
    forward: Callable[..., Tensor]
    hidden: Callable[..., Tensor]


class Forms:
    """Those that a model has here, and is to be run in.

    Attributes
    ----------
    most : int
        Sequences of a decode step up to which it is done in few kernels; 0 for none.

    Raises
    ------
    ValueError
        One is asked for that this model, or this machine, has not.
    """

    def __init__(self, model: nn.Module, cache: PagedCache, execution: Execution):
        self._large = self._few = Form("plain", model, model.hidden)
        self.most = 0
        if _tried("fused", execution.fused, model, cache):
            from llmsys.models.fused import FusedForward  # Triton: not before now

            # A model of somebody's own layers has its own forward, which is found out here.
            with contextlib.nullcontext() if execution.fused else contextlib.suppress(ValueError):
                fused = FusedForward(model)
                self._large = self._few = Form("fused", fused, fused.hidden)
        if _tried("few_kernels", execution.few_kernels, model, cache):
            from llmsys.models.few_kernels import FewKernelForward, takes  # Triton: not before now

            if takes(model, cache):
                few = FewKernelForward(model)
                self._few, self.most = Form("few kernels", few, few.hidden), few.most
            elif execution.few_kernels:
                raise ValueError(
                    "execution.few_kernels must be None or False for this model and cache, which these kernels cannot "
                    "take: see llmsys.models.few_kernels"
                )

    def of(self, decodes: int) -> Form:
        """The form for a decode step of so many sequences; 0: for any other step."""
        return self._few if 0 < decodes <= self.most else self._large


def _tried(name: str, switch: bool | None, model: nn.Module, cache: PagedCache) -> bool:
    """Whether kernels are to be used in place of a model's operations: asked for, or, in half precision on a GPU, for
    any Llama whose attention is the library's."""
    device = model.device.type
    if switch is False:
        return False
    if switch is None and (device != "cuda" or model.dtype not in (torch.float16, torch.bfloat16)):
        return False
    possible = isinstance(model, Llama) and triton_installed() and interpreting() is (device != "cuda")
    if switch and not possible:
        raise ValueError(
            f"execution.{name} must be None or False here: it is for a Llama where there is Triton, on a GPU, or on a "
            "CPU in Triton's interpreter"
        )
    return possible and (bool(switch) or cache.kernel in (None, "triton"))
