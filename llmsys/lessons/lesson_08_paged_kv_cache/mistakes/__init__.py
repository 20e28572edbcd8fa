"""Wrong answers to lesson 08 that are no kernels. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_08_paged_kv_cache.mistakes import block_pool, prefix_sharing, split_kv

__all__ = ["block_pool", "prefix_sharing", "split_kv"]
