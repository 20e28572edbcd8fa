"""The stepper of lesson 09: the timeline of an event log, a step at a time.

By default a small service is played, on the library's scheduler or the reader's own: every cell is what the scheduler
wrote down. The log of an engine that has run can be shown, too.
"""

from collections.abc import Callable, Iterable

from llmsys.serving.policies import POLICIES
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Arrived, Event
from llmsys.viz.continuous_batching.play import Asked, play
from llmsys.viz.continuous_batching.stepped import Frame, Row, frames_of
from llmsys.viz.continuous_batching.timeline import read
from llmsys.viz.continuous_batching.timeline_frame import draw
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper

PLACES, BLOCK_SIZE = 4, 4
BUDGETS, POOLS = (8, 16, 64), (12, 24)
"""Tokens of a step, and blocks of the pool."""
SYSTEM = tuple(range(900, 908))
"""The beginning that three of the prompts share: two blocks."""
REQUESTS = (
    Asked("A", (*SYSTEM, 1, 2, 3, 4), 7),
    Asked("B", (11, 12, 13, 14, 15), 4),
    Asked("C", (*SYSTEM, 21, 22), 9, step=2),
    Asked("D", tuple(range(30, 51)), 4, step=3),
    Asked("E", (*SYSTEM, 51, 52, 53), 5, step=5),
    Asked("F", (61, 62, 63), 8, step=6),
    Asked("G", tuple(range(70, 80)), 3, step=8),
)
"""A small service."""


def stepper(
    scheduler: Callable[..., Scheduler] | None = None,
    *,
    events: Iterable[Event] | None = None,
    budget: int | None = None,
    places: int | None = None,
) -> Stepper:
    """Step through who computes what in which step.

    scheduler    makes the reader's own, with the contract of `llmsys.serving.Scheduler`: it is shown as "yours", by the
                 policy "stall-free", beside the library's four policies. None: these alone
    events       the log of an engine that has run, in place of the small service: then there is nothing to choose, and
                 `budget` and `places` are the engine's max_tokens_per_step and max_sequences

    Raises ValueError where `events` comes without the two, has no step, or has more than 16 requests or 60 steps.
    """
    if events is not None:
        return _of_log(list(events), budget, places)
    made = {"yours": (scheduler, "stall-free")} if scheduler is not None else {}
    made |= {name: (Scheduler, name) for name in ("stall-free", *POLICIES)}
    rows = [Row(each.id, len(each.prompt), each.output) for each in REQUESTS]

    def frames(policy: str, budget: int, blocks: int) -> list[Frame]:
        maker, its_policy = made[policy]
        log = play(
            REQUESTS, policy=its_policy, max_tokens_per_step=budget, max_sequences=PLACES, num_blocks=blocks + 1,
            block_size=BLOCK_SIZE, scheduler=maker,
        )  # fmt: skip
        return frames_of(rows, read(log), budget=budget, places=PLACES)

    return Stepper(
        frames,
        draw,
        title="A scheduler's timeline",
        describe=describe,
        controls=[
            Choice("policy", "Policy", {name: name for name in made}),
            Choice("budget", "Tokens of a step", {str(each): each for each in BUDGETS}, start=16),
            Choice("blocks", "Blocks", {str(each): each for each in POOLS}),
        ],
        static=-1,
        keep_place=True,
    )


def _of_log(events: list[Event], budget: int | None, places: int | None) -> Stepper:
    if budget is None or places is None:
        raise ValueError("events need budget= and places= beside them: max_tokens_per_step and max_sequences")
    steps = read(events)
    rows = [Row(each.request, each.prompt_tokens) for each in events if isinstance(each, Arrived)]
    if not steps or len(rows) > 16 or len(steps) > 60:
        raise ValueError(
            f"events must have 1 to 60 steps of at most 16 requests, got {len(steps)} steps of {len(rows)}: show a "
            "part of the log"
        )
    frames = frames_of(rows, steps, budget=budget, places=places)
    return Stepper(frames, draw, title="An engine's timeline", describe=describe)


def describe(frame: Frame) -> str:
    """The caption of a frame: what the step did, and the sums so far."""
    parts = ", ".join(
        f"{part.request} {'a token' if part.decode else f'{part.tokens} of a prompt'}" for part in frame.now.parts
    )
    return (
        f"{frame.counts} Computed: {parts}. {frame.tail} So far {frame.computed} tokens were computed, {frame.found} "
        f"found and {frame.lost} lost."
    )
