"""20.unblock: transfers one by one, in an order in which nobody waits in a circle.

No order is asked for. A transfer may stand anywhere between the actions, as long as nothing is sent before it is
computed, and everything is there before it is needed; then the library plays the programs.
"""

from collections.abc import Callable

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_20_pipeline_schedules.plain import action_of, plain_unblock, program_of, program_texts
from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.communication import circle, programs
from llmsys.parallel.pipeline.dependencies import dependencies
from llmsys.parallel.pipeline.one_f_one_b import one_f_one_b

Found = Callable[[list[str], list[str], int], str]  # from a rank's program, what it was given, the number of ranks


@exercise_check(
    "20.unblock",
    forbids=(
        "llmsys.parallel.pipeline.communication:programs",
        "llmsys.lessons.lesson_20_pipeline_schedules.right:*",
    ),
    adapt=plain_unblock,
    hints=(
        "Two neighbours hang where each of them sends to the other one. What would one of them have to do, so that "
        "both go on? And which of two neighbours should it be, if every rank has to know it for itself?",
        "Of two neighbours, one must send where the other one receives. So of any two ranks side by side, one does the "
        "sends between two actions first, as it is, and the other one its receives.",
        "for each rank and its program:\n"
        "    on every second rank, wherever exchanges stand next to each other, without an action between them:\n"
        "        those that receive come first, then those that send\n"
        "    all else stays where it is",
    ),
)
def unblock(answer: Answer) -> None:
    def given(num_ranks: int, num_microbatches: int) -> list[list[str]]:
        some = programs(one_f_one_b(num_ranks, num_microbatches), "apart")
        return [program_texts(program, rank) for rank, program in enumerate(some)]

    ranks = int(answer.randint(3, 7))
    sizes = ((2, 3), (4, 8), (3, 5), (ranks, ranks + int(answer.randint(0, 6))))

    def holds(expected: str, wrong: Found) -> None:
        """Of every rank's program, `wrong` finds nothing."""
        for p, m in sizes:
            before = given(p, m)

            def found(r: Run, before=before, p=p) -> str:
                if not isinstance(r.value, list) or len(r.value) != p:
                    return f"no program for each of the {p} ranks"
                said = (wrong(now, was, p) for now, was in zip(r.value, before, strict=True))
                return next((f"rank {rank}: {text}" for rank, text in enumerate(said) if text), "")

            answer.that(answer(before), lambda r, found=found: not found(r), expected, got=found)

    with answer.property(
        "each rank does its actions as before, in their order",
        why="The schedule is right, it is only the transfers that hang.",
        hint="Which actions of a rank are missing, or moved? Those after its last exchange?",
    ):
        holds("all actions of each rank, in the order that was given", _other_actions)

    with answer.property(
        "each rank has all its transfers, each once and alone",
        why="What one rank sends the other one must receive. And on this wire nothing begins together.",
        hint="Count a rank's exchanges, before and after. Are those after the last action still there?",
    ):
        holds("the exchanges that were given, each with one transfer", _other_transfers)

    with answer.property(
        "nothing is sent before it is computed",
        why="There is nothing to send yet.",
        hint="Between which two actions does a send stand, and where did it stand before?",
    ):
        holds("each send somewhere after its action", _sent_early)

    with answer.property(
        "everything is received before the action that needs it",
        why="An action computes with what has been received.",
        hint="Between which two actions does a receive stand, and where did it stand before?",
    ):
        holds("each receive somewhere before what needs it", _received_late)

    def runs(p: int, m: int) -> None:
        before = given(p, m)

        def waits(r: Run) -> str:
            found = circle([program_of(program, rank) for rank, program in enumerate(r.value)])
            return "; ".join(map(str, found))

        answer.that(answer(before), lambda r: not waits(r), f"that {p} ranks with {m} microbatches come to their end",
                    got=waits)  # fmt: skip

    with answer.property(
        "two ranks come to their end",
        why="A send ends only when the other rank receives.",
        hint="What does rank 0 stand at, and what rank 1? For one of them, exchange that with what comes next.",
    ):
        for m in (2, 3, 8):
            runs(2, m)

    with answer.property(
        "and so do more ranks, an even or an odd number of them",
        why="A rank in the middle has two neighbours, and has to go with both of them.",
        hint="Which of its neighbours does a rank in the middle agree with by now? Look at each pair of neighbours.",
    ):
        for p, m in (*sizes, (5, 5), (6, 13), (8, 17)):
            runs(p, m)


def _other_actions(now: list[str], was: list[str], _: int) -> str:
    got, wanted = _actions(now), _actions(was)
    return "" if got == wanted else f"its actions are {' '.join(got) or 'none'}"


def _other_transfers(now: list[str], was: list[str], _: int) -> str:
    got, wanted = sorted(filter(_moves, now)), sorted(filter(_moves, was))
    if several := [text for text in got if "+" in text]:
        return f"one exchange has several transfers, {several[0]}"
    for text in got:
        if text not in wanted or got.count(text) > 1:
            return f"it has {text} {got.count(text)} times, and had it {wanted.count(text)} times"
    missing = [text for text in wanted if text not in got]
    return f"{missing[0]} is missing" if missing else ""


def _sent_early(now: list[str], _was: list[str], _: int) -> str:
    done: set[Action] = set()
    for text in now:
        if not _moves(text):
            done |= set(action_of(text).parts)
        elif text.startswith("→") and _of(text) not in done:
            return f"{text} comes before {text.partition(' ')[2]}"
    return ""


def _received_late(now: list[str], _was: list[str], num_stages: int) -> str:
    late = {_of(text): text for text in now if text.startswith("←")}
    for text in now:
        if text.startswith("←"):
            del late[_of(text)]
        elif not _moves(text):
            for needed in dependencies(action_of(text), num_stages):
                if needed in late:
                    return f"{text} needs {late[needed]}, which comes later"
    return ""


def _moves(text: str) -> bool:
    return text[:1] in ("→", "←")


def _actions(program: list[str]) -> list[str]:
    return [text for text in program if not _moves(text)]


def _of(text: str) -> Action:
    """What is sent or received."""
    return action_of(text.partition(" ")[2])
