"""A decode step of few sequences, in five or six kernels a layer, each begun before the one before it ends.

    if takes(model, cache):
        forward = FewKernelForward(model)
        logits = forward(batch.tokens, cache, batch)        # as model(batch.tokens, cache, batch)

`forward.py` has the step, `plans.py` how its work is cut up and what was measured, `refusals.py` what it cannot take;
`products.py`, `attention.py` and `ends.py` have the kernels, and `pieces.py` what they share.
"""

from llmsys.models.few_kernels.forward import FewKernelForward
from llmsys.models.few_kernels.plans import Plan, Tile, plan_for
from llmsys.models.few_kernels.refusals import takes

__all__ = ["FewKernelForward", "Plan", "Tile", "plan_for", "takes"]
