"""Pictures of lesson 04.

overview                 one program of the flash kernel, among all of the grid
causal_tiles             the tiles of scores under a causal mask: computed, masked, skipped
kernel_explorer          how many programs of the kernel fit on a multiprocessor, for each tile size (a stepper)
kernel_explorer_frame    one frame of the explorer
kernel_sweep             what the compiler made of the kernel in every configuration, as recorded
compile_sweep            the program that records it
"""

from llmsys.viz.flash_triton.causal_tiles import causal_tiles
from llmsys.viz.flash_triton.kernel_explorer import kernel_explorer
from llmsys.viz.flash_triton.overview import overview

__all__ = ["causal_tiles", "kernel_explorer", "overview"]
