"""The checks of lesson 07, the KV cache: attention with a cache, the bytes of a token, the largest batch. One module an
exercise; to import this package registers all three.
"""

from llmsys.lessons.lesson_07_kv_cache.checks import bytes_per_token, cached_attend, largest_batch

__all__ = ["bytes_per_token", "cached_attend", "largest_batch"]
