"""20.dependencies: what must be done before an action, and nothing else.

An answer may leave out what follows from the rest (I of a stage needs F of the same stage, and so does I of the next
one), and may name what is further up: all that counts is that the same must be done before.
"""

import itertools

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_20_pipeline_schedules.plain import action_of, actions_of, plain_dependencies
from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before


@exercise_check(
    "20.dependencies",
    reference=needed_before,
    forbids=("llmsys.parallel.pipeline.dependencies:*", "llmsys.lessons.lesson_20_pipeline_schedules.right:*"),
    adapt=plain_dependencies,
    hints=(
        "Follow one microbatch. What does a stage get from the stage before, and what from the stage after, and what "
        "does it have to have kept? Which of them are not there at the first stage, and which at the last?",
        "Forwards need the forward of the stage before. Gradients come from the other side: I needs the F of its own "
        "stage, and I of the next one. W needs I of its own stage, and nobody needs W. An action of several parts "
        "needs what its parts need, but for its own parts.",
        "for each part of action.parts, by its kind:\n"
        "    F: F of stage − 1, unless this is stage 0\n"
        "    I: F of this stage; I of stage + 1, unless this is the last one\n"
        "    W: I of this stage\n"
        "all of them but those that are in action.parts themselves",
    ),
)
def dependencies(answer: Answer) -> None:
    def needs(action: str, num_stages: int) -> None:
        """Whatever is named must be done before, and all that must be done before follows from what is named."""
        run = answer(action, num_stages)
        every = needed_before(action_of(action), num_stages)
        expected = [str(each) for each in every]
        implied = {each for other in every for each in _before([str(other)], num_stages) - {other}}
        needed = ", ".join(str(each) for each in every if each not in implied) or "nothing"
        if aside := ", ".join(str(each) for each in every if each in implied):
            needed += f" ({aside} may be left out)"
        answer.that(
            run,
            lambda r: _before(r.value, num_stages) == _before(expected, num_stages),
            expected=f"that {action}, of {num_stages} stages, needs {needed}",
            got=lambda r: (", ".join(map(str, r.value)) or "nothing") if isinstance(r.value, list) else str(r.value),
        )

    stages, microbatch = int(answer.randint(4, 9)), int(answer.randint(2, 30))
    middle, last = int(answer.randint(1, stages - 1)), stages - 1

    with answer.property(
        "a forward needs the forward of the stage before",
        why="Its input is what the stage before has computed.",
        hint="What is the input of a stage?",
    ):
        needs(f"{middle}F0", stages)
        needs(f"{last}F0", stages)

    with answer.property(
        "it needs nothing else, and at the first stage nothing at all",
        why="The first stage reads the batch.",
        hint="Which stage is before stage 0? And do two microbatches have anything to do with each other?",
    ):
        needs(f"{middle}F{microbatch}", stages)
        needs(f"0F{microbatch}", stages)
        needs("0F0", 1)

    with answer.property(
        "a gradient comes from the stage after, and from the loss at the last one",
        why="The chain rule runs from the end to the beginning. What a forward kept, the backward multiplies with.",
        hint="I computes the gradient of the stage's input. Of what does it need the gradient, and who has that? At "
        "the last stage it is the loss's, which its own forward has computed.",
    ):
        needs(f"{middle}I{microbatch}", stages)
        needs(f"0I{microbatch}", stages)
        needs(f"{last}I{microbatch}", stages)
        needs("0I0", 1)

    with answer.property(
        "which stage is the last one depends on the pipeline",
        why="The same action is asked for again, in pipelines of other lengths.",
        hint="Is anything kept from one call to the next?",
    ):
        for length in (stages, middle + 1, stages + 1):
            needs(f"{middle}I{microbatch}", length)

    with answer.property(
        "the gradients of the weights need those that I of the same stage has made",
        why="Of each layer inside the stage, what the forward kept and the gradient of its output. No other W is "
        "needed.",
        hint="The last layer of a stage gets its gradient from the next stage. Who makes that of the layers before it?",
    ):
        needs(f"{middle}W{microbatch}", stages)
        needs(f"{last}W0", stages)
        needs("0W1", stages)
        needs("0W1", 1)

    with answer.property(
        "a whole backward needs what its parts need, and not its own parts",
        why="It waits for I of the next stage. That stage's W may come later, or in the same action: nobody waits for "
        "it.",
        hint="B is I and W in one go: action.parts has both. Its W needs its I, which is in it.",
    ):
        for stage in (0, middle, last):
            needs(f"{stage}B{microbatch}", stages)
        needs("0B3", 1)

    with answer.property(
        "the other microbatches of a replica, and the other replica, are never waited for",
        why="Two microbatches are independent. In which order a rank takes them is for the schedule to say.",
        hint="Microbatch and replica are the same in all that an action needs.",
    ):
        for stage, kind in itertools.product((middle, last, 0), "FIWB"):
            needs(f"{stage}{kind}{microbatch}r1", stages)

    with answer.property(
        "an overlapped pair needs what both of its halves need",
        why="It begins when both of them can.",
        hint="action.parts of a pair are an F of one microbatch, and I and W of another. Each has its own stage.",
    ):
        needs(f"({middle}F{microbatch};{last}B1)", stages)
        needs(f"({last}F{microbatch};{last}B0)", stages)
        needs(f"(1F{microbatch};{stages - 2}B4r1)", stages)


def _before(texts: object, num_stages: int) -> set[Action] | None:
    """All that must be done before those, and they themselves. None where one is no action of such a pipeline, or not
    elementary: nobody can look up when that was done."""
    try:
        todo = list(actions_of(texts))
    except (TypeError, ValueError):
        return None
    seen: set[Action] = set()
    while todo:
        action = todo.pop()
        if action.parts != (action,) or not 0 <= action.stage < num_stages:
            return None
        if action not in seen:
            seen.add(action)
            todo += needed_before(action, num_stages)
    return seen
