"""The opening picture of lesson 07: what a new token computes without a cache, and with one.

The rows are counted from what is drawn. The times are those of the library's own operations of a model's step. Colours
are those of the lesson's stepper: arithmetic is green, weights are blue, the cache is orange.
"""

from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import estimate
from llmsys.models.operations import operations
from llmsys.models.shapes import SHAPES
from llmsys.viz.kit.numbers import seconds_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

PROMPT, STEPS = 4, 4
CELL, ROW, COLUMN = 15, 17, 134
"""Pixels: a token's cell is so wide and so high, and a step has a column."""
LEFT, TOTALS = 104, 650
MODEL, DEVICE, TOKENS = "Llama-3-8B", "H100 SXM", 4096
LAST = 244
"""Where the part with the times starts."""
BARS = (
    ("compute", "green", "computing"), ("weights", "blue", "reading weights and activations"),
    ("cache", "orange", "reading the cache"),
)  # fmt: skip
"""The parts of a bar of time, each with its colour and its name."""


def overview() -> Picture:
    """Without a cache every token recomputes all keys and values, with one it computes a row and reads the others."""
    without, cached = counts(cache=False), counts(cache=True)
    times = {name: waiting(queries) for name, queries in (("prefill", TOKENS), ("decode", 1))}
    said = {name: seconds_in_words(sum(parts.values())) for name, parts in times.items()}
    busy = {name: 100 * parts["compute"] / sum(parts.values()) for name, parts in times.items()}
    svg = Svg(760, 408, alt=(
        f"A prompt of {PROMPT} tokens, and {STEPS - 1} more tokens. Without a cache the steps compute "
        f"{_listed(without)} rows of keys and values, together {_sum(without)}, though only the last row of each is "
        f"new. With a cache they compute {_listed(cached)}, together {_sum(cached)}, and read the others. Below, "
        f"{MODEL} on {DEVICE} after {TOKENS:,} tokens: without a cache the next token takes at least "
        f"{said['prefill']}, as long as the prefill, {busy['prefill']:.0f}% of it arithmetic; with a cache "
        f"{said['decode']}, {busy['decode']:.0f}% of it arithmetic."
    ))  # fmt: skip
    for n in range(STEPS):
        name = ("prefill", f"{PROMPT} new") if n == 0 else ("decode", "1 new")
        svg.text(LEFT + n * COLUMN, 16, [(name[0], "bold"), (f" · {name[1]}", "muted")])
    svg.text(TOTALS, 16, "rows computed", "small bold")
    _band(svg, 30, "without", without)
    _band(svg, 128, "with", cached)
    for x, look, words in (
        (LEFT, "new", "computed"), (LEFT + 90, "again", "computed again, as in the step before"),
        (LEFT + 338, "read", "read from the cache"),
    ):  # fmt: skip
        _cell(svg, x, 216, 10, 10, look)
        svg.text(x + 16, 225, words, "small")
    _times(svg, times)
    return svg.picture()


def counts(*, cache: bool) -> list[tuple[int, int]]:
    """For each step the rows of keys and values that it computes, and those that it reads."""
    known = [PROMPT + n for n in range(STEPS)]
    return [(1, tokens - 1) if cache and n else (tokens, 0) for n, tokens in enumerate(known)]


def waiting(queries: int) -> dict[str, float]:
    """Seconds of a step with so many new tokens of `TOKENS`, by what it waits for: "compute", to read "weights" (and
    activations), to read the "cache"."""
    found = {"compute": 0.0, "weights": 0.0, "cache": 0.0}
    for op in operations(SHAPES[MODEL], batch=1, queries=queries, context=TOKENS):
        each = estimate(op, DEVICES[DEVICE])
        reads = "cache" if op.name == "attention" else "weights"
        found[reads if each.bound == "HBM" else "compute"] += op.count * each.seconds
    return found


def _band(svg: Svg, top: float, name: str, steps: list[tuple[int, int]]) -> None:
    svg.rect(0, top, 760, 80, "panel", rx=8)
    svg.text(12, top + 30, name, "bold")
    svg.text(12, top + 46, "a cache", "bold")
    for n, (computed, read) in enumerate(steps):
        x = LEFT + n * COLUMN
        for row, tensor in enumerate("kv"):
            y = top + 12 + row * (ROW + 3)
            svg.text(x - 5, y + 13, tensor, "end small muted")
            for token in range(read + computed):
                old = n > 0 and token < read + computed - 1
                _cell(svg, x + token * CELL, y, CELL - 2, ROW, "new" if not old else "read" if read else "again")
        words = [(f"{computed} computed", "bold green")] + ([(f", {read} read", "orange")] if read else [])
        svg.text(x, top + 68, words, "small")
    svg.text(TOTALS, top + 32, _listed(steps, " + "), "small")
    svg.text(TOTALS, top + 52, [("= ", ""), (f"{_sum(steps)}", "bold green")], "big")


def _cell(svg: Svg, x: float, y: float, width: float, height: float, look: str) -> None:
    """A row of keys or values: "new", computed "again", or "read"."""
    svg.rect(x, y, width, height, {"new": "green", "again": "green-soft", "read": "orange"}[look], rx=2)
    if look == "again":
        svg.rect(x + 0.5, y + 0.5, width - 1, height - 1, "line-green", rx=2)


def _times(svg: Svg, times: dict[str, dict[str, float]]) -> None:
    """Bars of the time of the next token, without a cache and with one, and what their colours mean."""
    svg.text(0, LAST + 16, [("The same at full size: ", "bold"), f"{MODEL} on {DEVICE}, at the least, after "
                            f"{TOKENS:,} tokens"])  # fmt: skip
    rows = (
        ("without", "the next token", "prefill"), ("with", "prefill, once", "prefill"),
        ("", "the next token", "decode"),
    )  # fmt: skip
    scale = 420 / sum(times["prefill"].values())
    for n, (which, name, step) in enumerate(rows):
        y = LAST + 30 + 36 * n + (6 if n else 0)
        parts = times[step]
        svg.text(12, y + 17, which, "small bold")
        svg.text(158, y + 17, name, "end small")
        x = 166.0
        for part, colour, _ in BARS:
            width = scale * parts[part]
            if width:
                svg.rect(x, y, max(width, 1), 26, colour, rx=0)
            x += width
        what = "computing" if parts["compute"] > parts["weights"] else "reading weights and cache"
        svg.text(x + 8, y + 17, [(seconds_in_words(sum(parts.values())), "bold"), f" · {what}"])
    for x, (_, colour, words) in zip((166, 264, 494), BARS, strict=True):
        svg.rect(x, LAST + 150, 10, 10, colour, rx=2)
        svg.text(x + 16, LAST + 159, words, "small")


def _listed(steps: list[tuple[int, int]], between: str = ", ") -> str:
    return between.join(str(computed) for computed, _ in steps)


def _sum(steps: list[tuple[int, int]]) -> int:
    return sum(computed for computed, _ in steps)
