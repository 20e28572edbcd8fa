"""The widget of lesson 20: a schedule whose rows can be edited, on four ranks with a stage each.

Each rank has a line of text, "F0 F1 B0 …". Whatever is written there is run by the simulator's step, the library's or
the reader's own, under their own rule of dependencies. Where an edit violates a dependency, the run gets stuck, and the
picture names who waits for whom.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import Rule
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before
from llmsys.parallel.pipeline.gpipe import gpipe
from llmsys.parallel.pipeline.one_f_one_b import one_f_one_b
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.zero_bubble import zb_h1, zb_h2
from llmsys.viz.kit.controls import Choice, Entry
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.pipeline_schedules.edited import Moment, play, text_of
from llmsys.viz.pipeline_schedules.grid import draw
from llmsys.viz.pipeline_schedules.rows import NAMES

RANKS, MICROBATCHES = 4, 6
TIMES = {"F = I = W = 1": "1 1 1", "F = 2, I = 3, W = 1": "2 3 1", "F = 2, I = 2, W = 3": "2 2 3"}


class Editor(Stepper):
    """A stepper whose rows are filled anew when another schedule is chosen, and that shows the end of what was
    edited."""

    def __init__(self, texts: Mapping[str, Sequence[str]], *arguments, **options):
        self._texts = texts
        super().__init__(*arguments, **options)

    def set(self, **values: Any) -> None:
        chosen = values.get("schedule")
        if chosen in self._texts:
            values = dict(zip(row_names(), self._texts[chosen], strict=True)) | values
        super().set(**values)

    def _rebuild(self, values: dict[str, Any]) -> None:
        super()._rebuild(values)
        self.index = len(self.frames) - 1


def editor(
    schedules: Mapping[str, Schedule] | None = None, *, step: Callable | None = None, dependencies: Rule = needed_before
) -> Editor:
    """Edit a schedule of four ranks and six microbatches.

    schedules       further ones to begin with, before the library's: name -> schedule of four ranks with a stage each
    step            the step of the simulator, with the contract of exercise 20.simulate; the given one if None
    dependencies    what must be done before what, with the contract of exercise 20.dependencies

    Raises ValueError for a schedule of another form.
    """
    own = schedules or {}
    for name, schedule in own.items():
        if schedule.placement.ranks != (tuple(range(RANKS)),) or schedule.num_microbatches != MICROBATCHES:
            raise ValueError(
                f"schedules[{name!r}] must have {RANKS} ranks with a stage each, and {MICROBATCHES} microbatches; got "
                f"{schedule.num_ranks} ranks, {schedule.num_stages} stages, {schedule.num_microbatches} microbatches"
            )
    made = (one_f_one_b, gpipe, zb_h1, zb_h2)
    every = {**own, **{NAMES[each.name]: each for each in (make(RANKS, MICROBATCHES) for make in made)}}
    texts = {name: [text_of(order) for order in schedule.orders] for name, schedule in every.items()}
    start = next(iter(texts.values()))

    def frames(schedule: str, times: str, **rows: str) -> list[Moment]:
        f, i, w = map(float, times.split())
        return play([rows[name] for name in row_names()], MICROBATCHES, Costs(F=f, I=i, W=w), step, dependencies)

    return Editor(
        texts,
        frames,
        draw,
        title="A schedule to edit",
        describe=describe,
        controls=[
            Choice("schedule", "Begin with", {name: name for name in texts}),
            Choice("times", "Times", TIMES),
            *(Entry(name, f"Rank {rank}", start=start[rank]) for rank, name in enumerate(row_names())),
        ],
        static=-1,
        interval=400,
    )


def describe(moment: Moment) -> str:
    """The caption of a moment: what is said below the rows, and each rank's idle time and memory."""
    ranks = [
        f"rank {rank} was idle for {moment.idle(rank):g}, keeps {moment.keeps(rank):g}, at most {moment.most(rank):g}"
        for rank in range(moment.ran.schedule.num_ranks)
    ]
    return f"{moment.head} {' '.join(moment.tail)} {'; '.join(ranks).capitalize()}."


def row_names() -> list[str]:
    """The names of the rows' controls."""
    return [f"rank_{rank}" for rank in range(RANKS)]
