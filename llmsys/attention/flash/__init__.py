"""Stage 4, flash: FlashAttention in Triton, forward and backward. The chapter, in the order in which to read it:

    forward             what surrounds the forward kernel: the contract, tiles, launch, gradients
    kernels             the forward kernel
    tiles               the sizes of tiles: a table, and autotuning, whose results are kept
    backward            what surrounds the backward kernels
    backward_kernels    delta, dK and dV, dQ
"""

from llmsys.attention.flash.forward import flash_attention, launch

__all__ = ["flash_attention", "launch"]
