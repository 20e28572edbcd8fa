"""The checks of lesson 20, pipeline schedules. One module an exercise; to import this package registers all."""

from llmsys.lessons.lesson_20_pipeline_schedules.checks import (
    dependencies,
    fill_with_w,
    fold,
    one_f_one_b,
    simulate,
    split_backward,
    unblock,
)

__all__ = ["dependencies", "fill_with_w", "fold", "one_f_one_b", "simulate", "split_backward", "unblock"]
