"""Wrong answers to lesson 08 that are no kernels: a module an exercise. To import this package registers them all."""

from llmsys.lessons.lesson_08_paged_kv_cache.mistakes import split_kv

__all__ = ["split_kv"]
