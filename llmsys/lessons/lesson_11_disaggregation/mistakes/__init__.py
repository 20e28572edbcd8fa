"""What people get wrong in lesson 11. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_11_disaggregation.mistakes import division, goodput, order, route

__all__ = ["division", "goodput", "order", "route"]
