"""What must be done before an action: the one rule that validating, simulating and executing share.

For one microbatch, with stages 0 … S − 1:

    F of stage s   needs F of stage s − 1: its input
    I of stage s   needs F of stage s: what it kept; and I of stage s + 1: the gradient of its output
    W of stage s   needs I of stage s, which leaves the gradients of the layers' outputs for it

B needs what its I needs, as its W follows at once, and a pair what its halves need. The answers are elementary
actions: whether the I of stage s + 1 is done alone or inside a B is for the schedule to say (`where_done`). So each
stage may split its backward or not, as it likes.
"""

from collections.abc import Callable, Sequence

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.schedule import Schedule

Rule = Callable[[Action, int], Sequence[Action]]
"""A function with the contract of `dependencies`: whatever works with schedules takes another one by that name."""


def dependencies(action: Action, num_stages: int) -> tuple[Action, ...]:
    """The elementary actions that must be done before `action`, but for what it contains.

    `num_stages` are the stages of one replica. What the own stage gives comes first. The halves of a pair run at the
    same time, so one that needed the other would need itself: such a pair can never be done.
    """
    if action.kind is Kind.FB:
        return dependencies(action.forward, num_stages) + dependencies(action.backward, num_stages)
    return _of_elementary(action.parts[0], num_stages)


def _of_elementary(action: Action, num_stages: int) -> tuple[Action, ...]:
    stage, microbatch, replica = action.stage, action.microbatch, action.replica
    if action.kind is Kind.F:
        return (Action(Kind.F, stage - 1, microbatch, replica),) if stage > 0 else ()
    if action.kind is Kind.W:
        return (Action(Kind.I, stage, microbatch, replica),)
    own = Action(Kind.F, stage, microbatch, replica)
    return (own, Action(Kind.I, stage + 1, microbatch, replica)) if stage < num_stages - 1 else (own,)


def where_done(schedule: Schedule) -> dict[Action, tuple[int, int]]:
    """For each elementary action of a schedule, where it is done: (rank, place in the rank's order).

    Where one is done twice, the last place counts; `validate` finds such schedules.
    """
    return {part: (rank, place) for rank, place, action in schedule.actions() for part in action.parts}
