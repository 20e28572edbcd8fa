"""06.order: the order of the work of one SM. What it is worth, the model of an SM says (`llmsys.hardware.sm`)."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware import sm
from llmsys.lessons.lesson_06_flash_hopper.plain_programs import held_up, only_loads, plain_order, run_order

NEARLY = 0.98
"""The part of the solution's utilisation that an answer has to reach where the exercise names no number."""

BESIDE_THE_SOFTMAX = (
    "Look at one warpgroup. What could its tensor core work be while it computes the softmax of tile i? Not S_i, which "
    "the softmax needs, and not P_i V_i, which needs the softmax."
)
WHOSE_TURN = (
    "Look at the timeline of two warpgroups without turns, and at what the tensor cores do while both compute "
    "exponentials. From which action to which should one of them have the tensor cores for itself?"
)


@exercise_check(
    "06.order",
    reference=sm.overlapped_order,
    forbids=("llmsys.hardware.sm:*", "llmsys.lessons.lesson_06_flash_hopper.mistakes:*"),
    adapt=plain_order,
    hints=(
        "Look at the timeline of two warpgroups without turns, and at what the tensor cores do while both compute "
        "exponentials. Then at one warpgroup: what could its tensor core work be while it computes the softmax of tile "
        "i? Not S_i, which the softmax needs, and not P_i V_i, which needs the softmax.",
        "Shift by half a step: in step i a warpgroup starts S_i and P V of tile i − 1, waits for S_i, and computes "
        "softmax i while P V of tile i − 1 runs. After the last step one P V is left. Turn() before the two products, "
        "Pass() when S_i is there. The producer, a program of its own, loads K and V of each tile in turn.",
        "for i in range(tiles):\n"
        "    Wait K i;  if i: Wait V i − 1\n"
        "    Turn;  Scores i;  if i: Output i − 1\n"
        "    Wait S i;  Pass;  Softmax i;  if i: Wait O i − 1\n"
        "Wait V tiles − 1;  Output tiles − 1;  Wait O tiles − 1\n"
        "one such list for each warpgroup, then [Load K 0, Load V 0, Load K 1, …]",
    ),
)
def order(answer: Answer) -> None:
    def outcome(tiles: int, warpgroups: int, D: int, begin: tuple[float, ...] = ()):
        return lambda run: run_order(run.value, warpgroups, tiles, D, begin)

    def runs(tiles: int, warpgroups: int, D: int = 128):
        find, run = outcome(tiles, warpgroups, D), answer(tiles, warpgroups)
        answer.that(
            run, lambda run: isinstance(find(run), sm.Timeline),
            "an order that comes to its end, and uses nothing that it has not waited for",
            got=find, by=lambda run: str(find(run))[:60],
        )  # fmt: skip
        return run

    def reaches(tensor: float, tiles: int, warpgroups: int, D: int, begin: tuple[float, ...] = ()) -> None:
        find = outcome(tiles, warpgroups, D, begin)

        def utilisation(run) -> float:
            timeline = find(run)
            return timeline.utilisation("tensor") if isinstance(timeline, sm.Timeline) else 0.0

        def said(run) -> str:
            timeline = find(run)
            if not isinstance(timeline, sm.Timeline):
                return timeline
            return f"{utilisation(run):.1%}" + (f": {why}" if (why := held_up(run.value)) else "")

        late = f", where the programs begin in the cycles {', '.join(map(str, begin))}" if begin else ""
        answer.that(
            answer(tiles, warpgroups), lambda run: utilisation(run) >= tensor,
            f"tensor cores that are busy for at least {tensor:.1%} of the time, with heads of {D}{late}",
            got=said, by=lambda run: round(utilisation(run), 2),
        )  # fmt: skip

    def nearly_best(tiles: int, warpgroups: int, D: int, begin: tuple[float, ...] = ()) -> None:
        best = sm.run(sm.overlapped_order(tiles, warpgroups), sm.attention_costs(D=D), begin=begin)
        reaches(NEARLY * best.utilisation("tensor"), tiles, warpgroups, D, begin)

    with answer.property(
        "one warpgroup, one tile of keys", why="Copy, scores, softmax, output: each waits for the one before.",
        hint="With one tile there is nothing to overlap. Write down what each of the four needs, and wait for that "
        "before it; and at the end for what is still running.",
    ):  # fmt: skip
        runs(1, 1)

    with answer.property(
        "one warpgroup, several tiles", why="What is used has been waited for, in every step.",
        hint="Follow the loop for two tiles by hand. In a loop that is shifted by half a step, what is different in "
        "the first step, and what is left after the last one?",
    ):  # fmt: skip
        for tiles in (2, 3, 7):
            runs(tiles, 1)

    with answer.property(
        "two, three and four warpgroups", why="A turn that is not passed on is waited for for ever.",
        hint="Each warpgroup has a list of its own, with as many Turn() as Pass(). Who has the turn when the first one "
        "comes round to its second step?",
    ):  # fmt: skip
        runs(1, 2)
        before = runs(5, 2)
        runs(6, 3, D=64)
        runs(3, 4)

    with answer.property(
        "asked again, it is the same order", why="A kernel asks for many: nothing may be left of the one before.",
        hint="Is there a list, a counter or a table outside of the function, or among its default arguments, that it "
        "changes?",
    ):  # fmt: skip
        answer.equal(answer(5, 2), before.value)

    with answer.property(
        "a program that computes nothing, the last of the list, starts all copies",
        why="It needs hardly any registers, which the others can have, and it is ahead of them as far as slots allow.",
        hint="One list for each warpgroup, and one more, the last, with Load(\"K\", i) and Load(\"V\", i) of every "
        "tile, once, and with nothing else.",
    ):  # fmt: skip
        for tiles, warpgroups in ((4, 2), (1, 1), (5, 3), (2, 1)):
            answer.that(
                answer(tiles, warpgroups), lambda run, n=tiles, w=warpgroups: only_loads(run.value, w, n) == "",
                f"{warpgroups} programs that compute, and after them one with the Loads of {tiles} tiles",
                got=lambda run, n=tiles, w=warpgroups: only_loads(run.value, w, n),
            )  # fmt: skip

    with answer.property(
        "two warpgroups, heads of 128: the tensor cores are busy for 90% of the time",
        why='While one computes exponentials, the other multiplies. viz.flash_hopper.sm_timeline({"mine": '
        "run(order(8, 2), attention_costs(D=128))}) shows yours.",
        hint=WHOSE_TURN,
    ):
        reaches(0.90, 16, 2, 128)

    with answer.property(
        "one warpgroup alone, heads of 64: 45%, where one thing after the other has 39%",
        why="Its softmax of tile i runs while its own P V of tile i − 1 does.", hint=BESIDE_THE_SOFTMAX,
    ):  # fmt: skip
        reaches(0.45, 16, 1, 64)

    with answer.property(
        "both at once: 95% with heads of 128, and 97% with three warpgroups",
        why="Nothing is left but the first and the last step.", hint=BESIDE_THE_SOFTMAX,
    ):  # fmt: skip
        reaches(0.95, 16, 2, 128)
        reaches(0.97, 16, 3, 128)

    with answer.property(
        "few tiles and many, whatever the heads", why="Both overlaps, for every number of tiles and of warpgroups.",
        hint="For which number of tiles, or of warpgroups, does your function take another way? " + BESIDE_THE_SOFTMAX,
    ):  # fmt: skip
        for tiles, warpgroups, D in ((5, 2, 128), (5, 3, 128), (9, 1, 128), (23, 2, 64), (21, 1, 64), (13, 4, 128)):
            nearly_best(tiles, warpgroups, D)

    with answer.property(
        "whenever the warpgroups begin", why="Turns put them apart, and keep them apart. A head start may be lost.",
        hint=WHOSE_TURN,
    ):  # fmt: skip
        for late in range(400, 3200, 400):
            nearly_best(16, 2, 128, (late, 0))
            nearly_best(16, 2, 128, (0, late))
