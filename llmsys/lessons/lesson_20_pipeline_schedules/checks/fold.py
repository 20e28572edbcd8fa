"""20.fold: from DualPipe to DualPipeV.

No order is asked for: any schedule on a V that is valid, as fast and as frugal as the library's, with pairs that are
still pairs.
"""

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_20_pipeline_schedules.plain import plain_fold, schedule_of
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dualpipe_v import dualpipe_v
from llmsys.parallel.pipeline.placement import v_shaped
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.validate import validate

COMPLETE = {"unknown", "rank", "twice", "missing"}
EQUAL = (Costs(), Costs(F=2, I=2, W=1), Costs(F=2, I=3, W=1), Costs(F=3, I=2, W=3))
OVERLAPPED = (Costs(FB=2.5), Costs(F=2, I=2, W=1, FB=4))


@exercise_check(
    "20.fold",
    forbids=("llmsys.parallel.pipeline.dualpipe_v:*", "llmsys.lessons.lesson_20_pipeline_schedules.right:*"),
    adapt=plain_fold,
    hints=(
        "Rank r of DualPipe has stage r of replica 0 and stage P − 1 − r of replica 1. Which two stages has rank r of "
        "the V? And by how much are the microbatches of replica 1 numbered too high?",
        "An action keeps its kind and its stage. If it was of replica 1, its microbatch is less by replica 0's share, "
        "and its replica is 0. A pair is two actions, each of another replica, and both change.",
        "half, share = half of the ranks, half of the microbatches\n"
        "one_replica(action):\n"
        "    a pair becomes the pair of its two halves, each by one_replica\n"
        "    any other action keeps kind and stage, has replica 0, and its microbatch is less by replica · share\n"
        "orders = of each of the first `half` ranks, its actions by one_replica\n"
        "a Schedule of them on v_shaped(half), with `share` microbatches",
    ),
)
def fold(answer: Answer) -> None:
    ranks = 2 * int(answer.randint(2, 5))
    sizes = ((8, 20), (ranks, 2 * ranks + 2 * int(answer.randint(0, 5))), (2, 4), (4, 8), (6, 18))

    def folded(p: int, m: int) -> Run:
        return answer(f"dualpipe({p}, {m})")

    def found(run: Run, kinds: set[str]) -> str:
        """The first problem of these kinds, in words."""
        try:
            problems = validate(schedule_of(run.value)).problems
        except (TypeError, ValueError) as error:
            return str(error)
        return next((str(each) for each in problems if each.kind in kinds), "")

    with answer.property(
        "half of the ranks are left", why="The other half does the same, for the other direction.",
        hint="What is half of schedule.num_ranks, and whose orders do you keep?",
    ):  # fmt: skip
        for p, m in sizes:
            answer.that(folded(p, m), lambda r, p=p: len(r.value["orders"]) == p // 2, f"orders for {p // 2} ranks",
                        got=lambda r: f"orders for {len(r.value['orders'])} ranks")  # fmt: skip

    with answer.property(
        "the stages lie on a V: down the ranks, and up again",
        why="Rank r has stages r and P − 1 − r of a model of P stages, of one copy.",
        hint="Which placement of `pipeline` has stage P − 1 − r on the rank of stage r?",
    ):
        for p, m in sizes:
            wanted = [list(row) for row in v_shaped(p // 2).ranks]
            answer.that(folded(p, m), lambda r, wanted=wanted: r.value["ranks"] == wanted, f"stages on ranks {wanted}",
                        got=lambda r: f"stages on ranks {r.value['ranks']}")  # fmt: skip

    with answer.property(
        "it has half of the microbatches",
        why="Half of them went the other way, through the other half of the ranks.",
        hint="How many microbatches has one direction of DualPipe?",
    ):
        for p, m in sizes:
            answer.that(folded(p, m), lambda r, m=m: r.value["microbatches"] == m // 2, f"{m // 2} microbatches",
                        got=lambda r: f"{r.value['microbatches']} microbatches")  # fmt: skip

    with answer.property(
        "each microbatch goes through every stage once, forward and backward",
        why="There is one replica, its number is 0, and its microbatches are counted from 0.",
        hint="Follow one action of replica 1, alone and in a pair: what are its stage, microbatch and replica now?",
    ):
        for p, m in sizes:
            run = folded(p, m)
            answer.that(run, lambda r: not found(r, COMPLETE), f"F, I and W of {m // 2} microbatches at {p} stages, "
                        "each once, on the rank that has the stage", got=lambda r: found(r, COMPLETE))  # fmt: skip

    with answer.property(
        "no rank waits for ever",
        why="What the mirror image sent, the rank has from itself, at the same time.",
        hint="Is an order another one than DualPipe's?",
    ):
        for p, m in sizes:
            answer.that(folded(p, m), lambda r: not found(r, {"circle", "deadlock"}), "a schedule that can be run",
                        got=lambda r: found(r, {"circle", "deadlock"}))  # fmt: skip

    def as_fast(times: tuple[Costs, ...]) -> None:
        for p, m in sizes:
            run = folded(p, m)
            for costs in times:
                most = simulate(dualpipe_v(p // 2, m // 2), costs).makespan
                words = f"F = {costs.F:g}, I = {costs.I:g}, W = {costs.W:g}"
                words += "" if costs.FB is None else f", a pair in {costs.FB:g}"
                answer.that(
                    run, lambda r, costs=costs, most=most: simulate(schedule_of(r.value), costs).makespan <= most,
                    f"that all are done after {most:g}, as in DualPipe, with {words}",
                    got=lambda r, costs=costs: f"after {simulate(schedule_of(r.value), costs).makespan:g}",
                )  # fmt: skip

    with answer.property(
        "it takes as long as DualPipe on all the ranks",
        why="Each rank does what it did, when it did it.",
        hint="Which of a rank's actions comes later than in DualPipe?",
    ):
        as_fast(EQUAL)

    with answer.property(
        "no rank keeps more activations than in DualPipe",
        why="P + 1 of them, with P stages: that is what the order is made for.",
        hint="Does a backward, or a W, come later than in DualPipe?",
    ):
        for p, m in sizes:
            answer.that(folded(p, m), lambda r, p=p: max(_peaks(r)) <= p + 1, f"at most {p + 1} on every rank",
                        got=lambda r: f"the most that each keeps: {', '.join(f'{each:g}' for each in _peaks(r))}"
                        )  # fmt: skip

    with answer.property(
        "a pair is still a pair",
        why="Pairs are what hides communication. Where a pair takes less than its halves, that is to be seen.",
        hint="What do you make of an action of kind FB? It should be a pair again, of a forward and a backward.",
    ):
        as_fast(OVERLAPPED)


def _peaks(run: Run) -> tuple[float, ...]:
    return simulate(schedule_of(run.value)).peaks
