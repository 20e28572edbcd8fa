"""The checks of lesson 03, tiled attention: one query, many of them, the bytes that cross. One module an exercise; to
import this package registers all three.
"""

from llmsys.lessons.lesson_03_tiled_attention.checks import attend_one_query, tiled_attention, tiled_bytes

__all__ = ["attend_one_query", "tiled_attention", "tiled_bytes"]
