"""The checks of lesson 06, FlashAttention on Hopper: an order of the work, a ring, a consumer's step, 8-bit blocks. One
module an exercise; to import this package registers all four.
"""

from llmsys.lessons.lesson_06_flash_hopper.checks import consumer, order, quantize_blocks, ring

__all__ = ["consumer", "order", "quantize_blocks", "ring"]
