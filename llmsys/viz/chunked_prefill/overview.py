"""The opening picture of lesson 10: two requests are answering when a long prompt comes, read in one step or in pieces.

How long a step takes is a round example: 5 ms, and 20 µs for each token of a prompt.
"""

from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.simulator.step_times import Prices, StepTimes
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

PROMPT, BUDGET = 4000, 1000
TIMES = StepTimes(Prices(fixed=5e-3), Prices(fixed=5e-3, per_token=20e-6))
BEFORE, STEPS_AFTER = 3, 5
"""Decode steps ahead of the prompt, and those after it where it is read in one step."""
LEFT, SCALE, ROW, CELL = 96, 4.6, 26, 20
"""SCALE is pixels a millisecond."""
Piece = tuple[float, float, int]
"""(start, end, tokens of the prompt), in ms."""


def overview() -> Picture:
    """Whole, the prompt holds everybody up; in pieces, nobody waits for longer than one of them."""
    whole, pieces = steps_of(PROMPT), steps_of(BUDGET)
    stalls = {name: max(end - start for start, end, n in steps if n) for name, steps in
              (("whole", whole), ("pieces", pieces))}  # fmt: skip
    later = first_token(pieces) - first_token(whole)
    svg = Svg(760, 372, alt=(
        f"A and B are answering when a prompt of {PROMPT:,} tokens comes. Read in one step, it keeps them waiting "
        f"{stalls['whole']:.0f} ms for their next token. In pieces of {BUDGET:,} tokens, with a token for A and B in "
        f"each of their steps, they wait {stalls['pieces']:.0f} ms at most, and the prompt is read "
        f"{later:.0f} ms later. The tokens of all three take the same time."
    ))  # fmt: skip
    y = 16
    for name, steps, words in (
        ("A whole prompt", whole, f"is one step of {PROMPT:,} tokens: A and B wait for its end"),
        ("In pieces", pieces, f"of {BUDGET:,} tokens, with A and B in each of their steps"),
    ):
        svg.text(0, y, [(name, "bold"), (f" {words}", "muted")])
        for n, row in enumerate(("A", "B", "prompt")):
            top = y + 14 + ROW * n
            svg.text(LEFT - 12, top + 15, row, "end small bold")
            for start, end, tokens in steps:
                x, wide = LEFT + SCALE * start, SCALE * (end - start) - 2
                if row != "prompt":
                    svg.rect(x + max(0.0, wide - 12), top, min(wide, 12), CELL, "blue", rx=2)
                elif tokens:
                    svg.rect(x, top, wide, CELL, "orange-soft", rx=2)
                    svg.rect(x, top, wide, CELL, "line-orange", rx=2)
                    svg.text(x + wide / 2, top + 14, f"{tokens:,}", "middle small")
        longest = max((each for each in steps if each[2]), key=lambda each: each[1] - each[0])
        wait = longest[1] - longest[0]
        svg.bracket(LEFT + SCALE * longest[0], LEFT + SCALE * longest[1] - 2, y + 14 + ROW * 3 + 6,
                    [(f"no token for {wait:.0f} ms", "bold purple")], "purple")  # fmt: skip
        y += 150
    svg.rect(0, 306, 760, 62, "panel", rx=8)
    svg.text(14, 331, [("The same tokens of all three, in the same time, ", "bold"),
                       f"and the prompt is read {later:.0f} ms later than in one step."])  # fmt: skip
    svg.text(14, 353, "(Blue: a token of an answer, as its step ends. An example: 5 ms a step, and 20 µs a token of "
             "the prompt.)")  # fmt: skip
    return svg.picture()


def steps_of(budget: int) -> list[Piece]:
    """Decodes, the prompt in pieces of so many tokens, and as many decodes as make the two pictures equally long in
    tokens."""
    found: list[Piece] = []
    at, left = 0.0, PROMPT

    def step(tokens: int) -> None:
        nonlocal at
        load = StepLoad.of([(100, 1), (100, 1)] + ([(PROMPT - left, tokens)] if tokens else []))
        end = at + 1e3 * TIMES.seconds(load._replace(tokens=tokens or load.tokens))
        found.append((at, end, tokens))
        at = end

    for _ in range(BEFORE):
        step(0)
    while left:
        piece = min(budget, left)
        step(piece)
        left -= piece
    for _ in range(STEPS_AFTER - (len(found) - BEFORE - 1)):
        step(0)
    return found


def first_token(steps: list[Piece]) -> float:
    """When the last piece is done, in ms."""
    return max(end for _, end, n in steps if n)
