"""The checks of lesson 09, continuous batching. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_09_continuous_batching.checks import admission, steps

__all__ = ["admission", "steps"]
