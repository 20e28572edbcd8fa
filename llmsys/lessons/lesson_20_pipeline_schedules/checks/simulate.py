"""20.simulate: when the next action of each rank begins, of those that can begin at all."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_20_pipeline_schedules.given import given_order
from llmsys.lessons.lesson_20_pipeline_schedules.plain import plain_orders, plain_step
from llmsys.lessons.lesson_20_pipeline_schedules.right import simulate_step as right_step


@exercise_check(
    "20.simulate",
    forbids=(
        "llmsys.parallel.pipeline.simulate:*",
        "llmsys.viz.pipeline_schedules.stepped:*",
        "llmsys.lessons.lesson_20_pipeline_schedules.right:*",
    ),
    adapt=plain_step,
    hints=(
        "Take one rank. What is its next action, what does that need, and is all of it done? If so, at which moments "
        "do the rank, and each of the results, become available to it?",
        "An action starts at the latest of these moments: its rank is free; and for each action that it needs, its end "
        "plus the transfer from the rank that did it to this one. A rank whose next action cannot run yet does "
        "nothing, even if a later one could.",
        "for each rank that has something left to do:\n"
        "    action = the first of its actions;  needed = needs(action)\n"
        "    if one of those is not in done: this rank waits\n"
        "    start = the largest of free[rank] and, for each of needed, its (end, by) in done:\n"
        "        end + costs.transfer_time(by, rank)\n"
        "    ran gets (rank, action, start, start + costs.time(action))",
    ),
)
def simulate(answer: Answer) -> None:
    def agrees(todo: list, *, stages: int, free=None, done=None, steps=1, told="all", **costs) -> None:
        given = dict(
            todo=[order.split() if isinstance(order, str) else order for order in todo],
            free=free or [0.0] * len(todo), done=done or {}, costs=costs, num_stages=stages, steps=steps,
            told=told,
        )  # fmt: skip
        expected = plain_step(right_step)(**given)
        run = answer(**given)
        answer.that(run, lambda r: r.value == expected, f"that {_first(expected, run.value)}",
                    got=lambda r: _first(r.value, expected))  # fmt: skip

    a, b, c = (float(answer.randint(2, 9)) for _ in range(3))

    with answer.property(
        "an action that needs nothing can run", why="The first forwards are such actions: their input is the batch."
    ):
        agrees(["0F0 0F1"], stages=1, told="who")

    with answer.property(
        "where something is not done yet, the rank waits, and the others do not",
        why="Whoever can compute does. A step runs the next action of every rank that can run.",
        hint="What do you do with a rank that has to wait, and with those after it?",
    ):
        agrees(["0I0", "1F0 1I0", "2F0"], done={"0F0": [1, 0]}, free=[1, 0, 0], stages=3, told="who")
        agrees(["", "1F0 1F1", "2F0", "3F0"], free=[2, 0, 2, 0], done={"0F0": [1, 0], "1F9": [2, 1]}, stages=4,
               told="who")  # fmt: skip
        agrees(["0F0", "1F0", "2F1"], done={"0F1": [1, 0], "1F1": [2, 1]}, free=[1, 2, 0], stages=3, told="who")

    with answer.property(
        "a rank does its actions in their order, also where a later one could run",
        why="The order is what a schedule is. A rank that picks for itself keeps what nobody has planned for.",
        hint="Which of a rank's actions do you look at?",
    ):
        agrees(["0B0 0F2", "1F0 1B0"], free=[2, 0], done={"0F0": [1, 0], "0F1": [2, 0]}, stages=2, told="who")
        agrees(["0B0 0F2", "1B0"], free=[2, 2], done={"0F0": [1, 0]}, stages=2, told="who")

    with answer.property(
        "an action that needs nothing starts when its rank is free, and takes its time",
        why="A rank does one action at a time.",
        hint="When is the rank free, and how long does the action take?",
    ):
        agrees(["0F3"], free=[a], stages=1, F=b)
        agrees(["0F1 0F2", ""], free=[a, a + 1], done={"0F0": [a, 0]}, stages=2, F=[b, c])

    with answer.property(
        "it starts when the rank is free and the last of all that it needs has ended",
        why="Whatever comes last decides.",
        hint="An I needs two things. Which of the two ends, and of the rank's own, do you take?",
    ):
        done = {"1F0": [a, 1], "2I0": [a + b, 2]}
        agrees(["", "1I0", ""], free=[0, a + b + 1, a + b], done=done, stages=3, I=c)
        agrees(["", "1I0", ""], free=[0, 1, a], done={"1F0": [a + b, 1], "2I0": [a, 2]}, stages=3, I=c)
        agrees(["", "1I0", ""], free=[0, a + 1, a + b], done=done, stages=3, I=c)
        agrees(["", "1B0", ""], free=[0, a, a + b], done={"1F0": [a + b + c, 1], "2I0": [a, 2]}, stages=3, I=2, W=b)

    with answer.property(
        "what another rank has done arrives a transfer later; the own results are there at once",
        why="The sender goes on meanwhile. But the receiver cannot begin.",
        hint="In `done`, who did it? What is added for whom, and is it added before or after you look whether the rank "
        "is free?",
    ):
        agrees(["", "1F0"], free=[1, 0], done={"0F0": [1, 0]}, stages=2, transfer=a)
        agrees(["", "1F0"], free=[1, a + 1.5], done={"0F0": [1, 0]}, stages=2, transfer=a)
        agrees(["0W0"], free=[b], done={"0I0": [b, 0]}, stages=1, transfer=a, W=c)
        agrees(["", "1I0", ""], free=[0, 2, 3], done={"1F0": [2, 1], "2I0": [3, 2]}, stages=3, transfer=0.5)
        agrees(["", "1F0"], free=[9, 0], done={"0F0": [1, 0]}, stages=2, transfer=2)
        agrees(["", "1I0", ""], free=[0, 14, 4], done={"1F0": [14, 1], "2I0": [4, 2]}, stages=3, transfer=5)
        agrees(["", "1I0", ""], free=[0, 10, 9], done={"1F0": [10, 1], "2I0": [9, 2]}, stages=3, transfer=4)
        table = [[0.0, a, b], [c, 0.0, a + b], [b + c, a + c, 0.0]]
        agrees(["", "1I0", "2F1"], free=[0, 2, 3], done={"1F0": [2, 1], "2I0": [3, 2], "1F1": [4, 1]}, stages=3,
               transfer=table)  # fmt: skip

    with answer.property(
        "stages may lie on any rank, and actions may be pairs",
        why="In a V, rank 0 has the first stage and the last. The rank that did something is in `done`, whatever its "
        "stage.",
        hint="Do you ask who did it, or do you take the stage for the rank?",
    ):
        agrees(["3F0", "2F0"], free=[0, 3], done={"2F0": [3, 1]}, stages=4, transfer=a)
        agrees(["", "2F0"], free=[1, 2], done={"1F0": [2, 1]}, stages=4, transfer=a)
        agrees(["", "1I0"], free=[1, 3], done={"1F0": [2, 1], "2I0": [3, 1]}, stages=4, transfer=4)
        agrees(["(0F4;0B1)", ""], free=[a, b], done={"0F1": [2, 0], "1I1": [b, 1]}, stages=2, transfer=1, F=2, I=3)
        done = {"0F1": [9, 0], "1F0": [2, 1], "2I0": [10, 2]}
        slow = [[0.0, 5.0, 5.0], [5.0, 0.0, 5.0], [5.0, 1.0, 0.0]]
        agrees(["", "(1F1;1B0)", ""], free=[9, 2, 10], done=done, stages=3, transfer=slow)
        agrees(["", "(1F1;1B0)"], free=[a, b], done={"1F0": [2, 1], "0F1": [c, 0]}, stages=2, transfer=1, FB=2)

    with answer.property(
        "step after step, a whole schedule",
        why="That is the simulator: where nobody can run, and something is left to do, the schedule is stuck.",
        hint="Follow the first line that differs: what did that action need, who did it, and when?",
    ):
        orders = plain_orders(given_order)(4, 6)
        agrees(orders, stages=4, steps=24)
        agrees(orders, stages=4, steps=24, F=[1, 2, 2, 3], I=[2, 1, 3, 3], W=1, transfer=0.25)
        agrees([orders[0], orders[1][::-1], *orders[2:]], stages=4, steps=9)


def _first(steps: object, others: object) -> str:
    """In words, the first step that is not as the other ones have it."""
    if not isinstance(steps, list) or not isinstance(others, list):
        return str(steps)
    n = next((n for n, (one, other) in enumerate(zip(steps, others, strict=False)) if one != other), 0)
    said = "; ".join(map(str, steps[n])) if isinstance(steps[n], list) else str(steps[n])
    return f"{said or 'no rank runs anything'}{f', in step {n}' if len(steps) > 1 else ''}"
