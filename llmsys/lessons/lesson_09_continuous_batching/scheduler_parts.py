"""What the readers' classes are built on: a whole scheduler, of which an exercise asks for three methods anew.

    class Steps(SchedulerParts):       share_out, logits, take_in         exercise (a)
    class Admission(SchedulerParts):   make_room, preempt, admit          exercise (b)
    class Mine(Steps, Admission):      both

The engine takes any of the three.
"""

from llmsys.lessons.lesson_09_continuous_batching.right_admission import RightAdmission
from llmsys.lessons.lesson_09_continuous_batching.right_steps import RightSteps


class SchedulerParts(RightSteps, RightAdmission):
    """A scheduler with the contract that the engine asks for. What a subclass does not write itself is given."""


class GivenSteps(SchedulerParts):
    """Stands in for a reader's `Steps`."""


class GivenAdmission(SchedulerParts):
    """Stands in for a reader's `Admission`."""
