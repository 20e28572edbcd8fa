"""What is judged of the orders of all ranks together: they are put into a schedule of the library, and simulated.

Ranks have one stage each, and times are whole numbers, so that nothing is rounded.
"""

from collections.abc import Sequence

from llmsys.course.checking.answer import Answer, Run
from llmsys.lessons.lesson_20_pipeline_schedules.plain import actions_of
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.placement import linear
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.timeline import Timeline


def as_expected(answer: Answer, run: Run, expected: list[list[str]]) -> None:
    """Each rank's order is this one. The first rank that has another is shown."""

    def wrong(r: Run) -> int | None:
        if not are_orders(r.value, len(expected)):
            return 0
        return next((n for n, (got, want) in enumerate(zip(r.value, expected, strict=True)) if got != want), None)

    rank = wrong(run) or 0
    answer.that(
        run, lambda r: wrong(r) is None, f"that rank {rank} of {len(expected)} does {' '.join(expected[rank])}",
        got=lambda r: f"{' '.join(r.value[rank])}" if are_orders(r.value, len(expected)) else str(r.value),
    )  # fmt: skip


def everything_once(answer: Answer, run: Run, num_ranks: int, num_microbatches: int, kinds: str = "FB") -> None:
    """Rank r has each kind of action of each microbatch at stage r once, and nothing else."""
    wanted = [
        {f"{rank}{kind}{n}" for kind in kinds for n in range(num_microbatches)} for rank in range(num_ranks)
    ]  # fmt: skip

    def wrong(r: Run) -> str:
        if not are_orders(r.value, num_ranks):
            return "no list of actions for each rank"
        for rank, (order, every) in enumerate(zip(r.value, wanted, strict=True)):
            for text in order:
                if text not in every:
                    return f"rank {rank} does {text}"
                if order.count(text) > 1:
                    return f"rank {rank} does {text} {order.count(text)} times"
            if missing := sorted(every - set(order)):
                return f"rank {rank} never does {missing[0]}"
        return ""

    kinds_in_words = " and ".join((", ".join(kinds[:-1]), kinds[-1]))
    answer.that(
        run, lambda r: not wrong(r), f"{kinds_in_words} of {num_microbatches} microbatches, once each", got=wrong
    )


def makespan(
    answer: Answer, run: Run, num_ranks: int, num_microbatches: int, most: float, costs: Costs | None = None
) -> None:
    """All are done after this time at the latest."""

    def found(r: Run) -> str:
        timeline, stuck = simulated(r.value, num_ranks, num_microbatches, costs)
        ends = "; ".join(f"rank {rank} does {' '.join(r.value[rank])}" for rank in sorted({0, num_ranks - 1}))
        return stuck or f"they are done after {timeline.makespan:g}. Of the ranks at the ends, {ends}"

    def holds(r: Run) -> bool:
        timeline, stuck = simulated(r.value, num_ranks, num_microbatches, costs)
        return not stuck and timeline.makespan <= most

    costs = costs or Costs()
    times = f"F = {costs.F:g}, I = {costs.I:g}, W = {costs.W:g}"
    expected = f"that {num_microbatches} microbatches on {num_ranks} ranks are done after {most:g}, with {times}"
    answer.that(run, holds, expected, got=found)


def kept(answer: Answer, run: Run, num_ranks: int, num_microbatches: int, most: Sequence[float]) -> None:
    """No rank keeps more activations at a time than its own limit."""

    def peaks(r: Run) -> tuple[float, ...]:
        timeline, stuck = simulated(r.value, num_ranks, num_microbatches)
        return (float("inf"),) * num_ranks if stuck else timeline.peaks

    def found(r: Run) -> str:
        return f"the most that each keeps: {', '.join(f'{peak:g}' for peak in peaks(r))}"

    answer.that(
        run,
        lambda r: all(peak <= limit for peak, limit in zip(peaks(r), most, strict=True)),
        f"at most {', '.join(f'{limit:g}' for limit in most)} activations at a time on ranks 0 to {num_ranks - 1}",
        got=found,
    )


def simulated(
    orders: object, num_ranks: int, num_microbatches: int, costs: Costs | None = None
) -> tuple[Timeline | None, str]:
    """The timeline of these orders, or None and what is the matter with them."""
    try:
        actions = tuple(map(actions_of, orders))
        if strange := [each for rank, order in enumerate(actions) for each in order if each.stage != rank]:
            return None, f"{strange[0]} is done by a rank that has another stage"
        return simulate(Schedule("yours", linear(num_ranks), num_microbatches, actions), costs), ""
    except (TypeError, ValueError) as error:
        return None, f"nobody can go on. {error}"


def are_orders(value: object, num_ranks: int) -> bool:
    """Whether that is a list of texts for each rank."""
    if not isinstance(value, list) or len(value) != num_ranks:
        return False
    return all(isinstance(order, list) and all(isinstance(text, str) for text in order) for order in value)
