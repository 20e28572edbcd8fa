"""Wrong answers to lesson 09. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_09_continuous_batching.mistakes import admission, steps

__all__ = ["admission", "steps"]
