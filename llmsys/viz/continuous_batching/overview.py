"""The opening picture of lesson 09: nine requests in three places, in batches that wait for their longest request, and
with a batch that is filled anew before every step.

Both are played on the library's scheduler; a bar is what it wrote down.
"""

from collections.abc import Sequence

from llmsys.viz.continuous_batching.play import Asked, play
from llmsys.viz.continuous_batching.timeline import Step, read
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

PLACES = 3
OUTPUTS = {"A": 3, "B": 8, "C": 2, "D": 5, "E": 4, "F": 2, "G": 6, "H": 3, "I": 2}
"""Tokens of each answer."""
COLOURS = ("blue", "orange", "purple", "green")
WAYS = (
    ("static", "Static", "a batch is formed, and the next one begins when the last of it has its answer"),
    ("stall-free", "Continuous", "before every step, whoever is done leaves, and whoever waits comes in"),
)
LEFT, CELL, HIGH = 62, 36, 24
Bar = tuple[str, int, int, int]
"""(request, place, first step, steps)."""


def overview() -> Picture:
    """In a static batch places stand empty until the longest request ends; a continuous one fills them at once."""
    found = {policy: serve(policy) for policy, *_ in WAYS}
    ends = {policy: len(steps) for policy, steps in found.items()}
    tokens = sum(OUTPUTS.values())
    empty = {policy: PLACES * end - tokens for policy, end in ends.items()}
    svg = Svg(760, 364, alt=(
        f"{len(OUTPUTS)} requests, whose answers have {_listed(OUTPUTS.values())} tokens, in {PLACES} places. Static "
        f"batches need {ends['static']} steps, and {empty['static']} of {PLACES * ends['static']} places in them are "
        f"empty. A batch that is filled anew before every step needs {ends['stall-free']} steps, with "
        f"{empty['stall-free']} places empty, at the end."
    ))  # fmt: skip
    y = 16
    for policy, name, words in WAYS:
        steps = found[policy]
        svg.text(0, y, [(name, "bold"), (f" · {words}", "muted")])
        for place in range(PLACES):
            top = y + 14 + 29 * place
            svg.text(LEFT - 10, top + 16, f"place {place + 1}", "end small muted")
            for step in range(len(steps)):
                svg.rect(LEFT + CELL * step, top, CELL - 2, HIGH, "panel", rx=2)
        for bar in bars(steps):
            _bar(svg, y + 14, bar)
        bottom = y + 14 + 29 * PLACES
        edge = LEFT + CELL * len(steps) - 2
        svg.bracket(LEFT, edge, bottom + 3, [
            (f"{len(steps)} steps", "bold"), f", {empty[policy]} of {PLACES * len(steps)} places empty"
        ], "ink")  # fmt: skip
        y += 150
    svg.rect(0, 300, 760, 62, "panel", rx=8)
    svg.text(14, 325, [("A step reads all weights once, ", "bold"),
                       "however many are in it: an empty place is a token that would have"])  # fmt: skip
    steps = f"{ends['static']} steps or {ends['stall-free']}"
    svg.text(14, 347, f"cost next to nothing. The same {tokens} tokens take {steps}. (Pale: the step that reads the "
             "prompt.)")  # fmt: skip
    return svg.picture()


def serve(policy: str) -> list[Step]:
    """The steps of the nine requests."""
    requests = [Asked(name, (n, 0, 0), output) for n, (name, output) in enumerate(OUTPUTS.items())]
    return read(play(requests, policy=policy, max_tokens_per_step=64, max_sequences=PLACES))


def bars(steps: Sequence[Step]) -> list[Bar]:
    """In which place each request is, and when: whoever comes takes the first that is free."""
    places: list[str | None] = [None] * PLACES
    found: list[Bar] = []
    for step in steps:
        for name in step.admitted:
            place = places.index(None)
            places[place] = name
            steps_there = sum(any(part.request == name for part in each.parts) for each in steps)
            found.append((name, place, step.number, steps_there))
        places = [None if name in step.ended else name for name in places]
    return found


def _bar(svg: Svg, y: float, bar: Bar) -> None:
    name, place, first, count = bar
    colour = COLOURS[list(OUTPUTS).index(name) % len(COLOURS)]
    x, top = LEFT + CELL * first, y + 29 * place
    width = CELL * count - 2
    svg.rect(x, top, width, HIGH, colour, rx=3)
    svg.rect(x, top, CELL - 2, HIGH, f"{colour}-soft", rx=3)
    svg.rect(x, top, width, HIGH, f"line-{colour}", rx=3)
    svg.text(x + (CELL - 2) / 2, top + 16.5, name, "middle bold")


def _listed(numbers) -> str:
    *some, last = map(str, numbers)
    return f"{', '.join(some)} and {last}"
