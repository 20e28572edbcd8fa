"""A model's forward with its small operations as kernels of their own. The chapter, in the order in which to read it:

    kernels      a residual and its norm, the gated SiLU, the angles of a step: three kernels of a dozen lines
    operations   what surrounds them: shapes, checks, launches
    forward      `FusedForward`: the model's own matrices, with these in between

Between two matrices PyTorch runs some ten kernels, each of which reads and writes all that a token is; when one token
is decoded, starting them takes longer than their work. Here there is one between any two matrices.
"""

from llmsys.models.fused.forward import FusedForward
from llmsys.models.fused.operations import add_norm, step_rotation, swiglu

__all__ = ["FusedForward", "add_norm", "step_rotation", "swiglu"]
