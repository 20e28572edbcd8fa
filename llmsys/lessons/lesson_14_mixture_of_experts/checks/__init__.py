"""The checks of lesson 14, mixture of experts. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_14_mixture_of_experts.checks import bias, dispatch, router, sequence_loss

__all__ = ["bias", "dispatch", "router", "sequence_loss"]
