"""The checks of lesson 08, the paged KV cache. One module an exercise; to import this package registers all of them."""

from llmsys.lessons.lesson_08_paged_kv_cache.checks import block_pool, paged_walk, prefix_sharing, split_kv

__all__ = ["block_pool", "paged_walk", "prefix_sharing", "split_kv"]
