"""Wrong answers to the exercises of lesson 20, as people write them. One module an exercise."""

from llmsys.lessons.lesson_20_pipeline_schedules.mistakes import (
    dependencies,
    fill_with_w,
    fold,
    one_f_one_b,
    simulate,
    split_backward,
    unblock,
)

__all__ = ["dependencies", "fill_with_w", "fold", "one_f_one_b", "simulate", "split_backward", "unblock"]
