"""Wrong answers to the exercises of lesson 14, as people write them. One module an exercise."""

from llmsys.lessons.lesson_14_mixture_of_experts.mistakes import bias, dispatch, router, sequence_loss

__all__ = ["bias", "dispatch", "router", "sequence_loss"]
