"""Wrong answers to lesson 10. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_10_chunked_prefill.mistakes import choose_budget, prefill_steps, read_log

__all__ = ["choose_budget", "prefill_steps", "read_log"]
