"""The checks of lesson 04, FlashAttention in Triton: a module an exercise, and one for the four repairs. To import this
package registers them all.
"""

from llmsys.lessons.lesson_04_flash_triton.checks import causal, inner_loop, ragged_groups, repairs

__all__ = ["causal", "inner_loop", "ragged_groups", "repairs"]
