"""The checks of lesson 08, the paged KV cache: a module an exercise. To import this package registers them all."""

from llmsys.lessons.lesson_08_paged_kv_cache.checks import paged_walk, split_kv

__all__ = ["paged_walk", "split_kv"]
