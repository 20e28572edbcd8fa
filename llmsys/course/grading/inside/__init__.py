"""What runs in the learner's process, beside the learner's code (`llmsys.course.grading.worker` is its main program).

    cells       a notebook's cells, run as Jupyter runs them
    guard       what answers have no business with, seen as it happens
    seal        whether the course and torch are what they were before the cells ran
    kernel_filter   system calls that would reach the grader, refused by Linux
"""
