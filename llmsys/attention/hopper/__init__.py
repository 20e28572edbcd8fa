"""Stage 5, hopper: FlashAttention for one GPU, the H100 (and H200), in Gluon. `forward` says in which order to read it;
`backward` and `fp8` begin chapters of their own, and `simulated` runs all of it on a laptop.
"""

from llmsys.attention.hopper.forward import hopper_attention, launch

__all__ = ["hopper_attention", "launch"]
