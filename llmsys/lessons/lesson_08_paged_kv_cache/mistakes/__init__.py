"""Wrong answers to lesson 08, as people write them. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_08_paged_kv_cache.mistakes import split_kv

__all__ = ["split_kv"]
