"""The checks of lesson 05, the backward pass: from stored weights, tile by tile, a kernel. One module an exercise; to
import this package registers all three.
"""

from llmsys.lessons.lesson_05_backward_pass.checks import backward_stored, backward_tiled, dkdv_kernel

__all__ = ["backward_stored", "backward_tiled", "dkdv_kernel"]
