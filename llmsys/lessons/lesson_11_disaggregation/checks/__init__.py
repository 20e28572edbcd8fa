"""The checks of lesson 11, disaggregation. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_11_disaggregation.checks import division, goodput, order, route

__all__ = ["division", "goodput", "order", "route"]
