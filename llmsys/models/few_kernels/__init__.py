"""A decode step of few sequences, in five kernels a layer and two at the ends, each begun before the one before ends.

    forward = FewKernelForward(model)
    if forward.takes(cache):
        logits = forward(batch.tokens, cache, batch)

`forward.py` has the step; `products.py`, `attention.py` and `ends.py` its kernels, and `pieces.py` what they share.
"""

from llmsys.models.few_kernels.forward import FewKernelForward, takes
from llmsys.models.few_kernels.plans import Plan, Tile, plan_for

__all__ = ["FewKernelForward", "Plan", "Tile", "plan_for", "takes"]
