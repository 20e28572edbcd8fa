"""What must be done before an action: the one rule that validating, simulating and executing share.

For one microbatch, with stages 0 … S − 1:

    F of stage s   needs F of stage s − 1: its input
    I of stage s   needs F of stage s: what it kept; and I of stage s + 1: the gradient of its output
    W of stage s   needs I of stage s, which leaves the gradients of the layers' outputs for it

B and FB need what their parts need, but for what they contain: B of stage s needs F of stage s and I of stage s + 1. The
answers are elementary actions; whether the schedule does an I alone or inside a B is for the schedule to say
(`where_done`). So neighbouring stages may split their backward or not, each as it likes.
"""

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.schedule import Schedule


def dependencies(action: Action, num_stages: int) -> tuple[Action, ...]:
    """The elementary actions that must be done before `action`, without those that follow from them.

    `num_stages` are the stages of one replica. The order is that of the action's parts, what the own stage gives first.
    """
    parts = action.parts
    needed = [before for part in parts for before in _of_elementary(part, num_stages)]
    return tuple(before for before in needed if before not in parts)


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
