"""Stage 5, hopper: FlashAttention for one GPU, the H100 (and H200), in Gluon.

Three chapters, whose first file says in which order to read the others: `forward`, `backward`, and `fp8` (eight bits,
forward only). `simulated` runs the kernels on a laptop.
"""

from llmsys.attention.hopper.forward import hopper_attention, launch

__all__ = ["hopper_attention", "launch"]
