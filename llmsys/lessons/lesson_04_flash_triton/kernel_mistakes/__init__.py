"""Wrong Triton kernels for lesson 04: each is a right one, in which a line or two read otherwise. To import this
package registers them all, and loads Triton.
"""

from llmsys.lessons.lesson_04_flash_triton.kernel_mistakes import causal, inner_loop, ragged_groups, repairs

__all__ = ["causal", "inner_loop", "ragged_groups", "repairs"]
