"""The checks of lesson 10, chunked prefill and goodput. One module an exercise; importing the package registers all."""

from llmsys.lessons.lesson_10_chunked_prefill.checks import choose_budget, prefill_steps, read_log

__all__ = ["choose_budget", "prefill_steps", "read_log"]
