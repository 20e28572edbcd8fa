"""Who walks over which keys, and for how long: programs of a decode step on a GPU's multiprocessors, in three ways.

A bar is a program, as long as the tiles of keys that it walks over; a row is a multiprocessor, which runs one program
at a time here and takes the next one when it is free. What is drawn is this schedule, and nothing is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

COLOURS = ("blue", "orange", "purple", "green")
LENGTHS = (90, 40, 22, 8)
"""Tiles of keys of each sequence."""
LEFT, LONGEST, WIDTH = 236, 450, 760
ROW, GAP = 9, 20


@dataclass(frozen=True)
class Bar:
    """A program, or a part of one: tiles from `start` to `end` on the clock, of one sequence, on one multiprocessor."""

    row: int
    start: int
    end: int
    sequence: int


def busy(lengths: Sequence[int] = LENGTHS, *, heads: int = 2, pieces: int = 4, rows: int = 12) -> Picture:
    """One program a sequence and key head; a fixed number of pieces; and all tiles in one line, cut into equal runs.

    lengths    tiles of keys of each sequence: 1 to 4 sequences
    heads      key heads, each with all the tiles
    pieces     of each sequence, in the second way
    rows       multiprocessors

    Raises ValueError where there is nothing to draw, or too much.
    """
    if not 1 <= len(lengths) <= len(COLOURS) or min(lengths) < 1:
        raise ValueError(f"lengths must be 1 to {len(COLOURS)} numbers from 1 on, got {list(lengths)}")
    for name, value in (("heads", heads), ("pieces", pieces), ("rows", rows)):
        if not 1 <= value <= 16:
            raise ValueError(f"{name} must be from 1 to 16, got {value}")
    ways = {
        "a program each": (in_turn(whole(lengths, heads), rows), f"{len(lengths) * heads} programs"),
        f"{pieces} pieces of each": (
            in_turn(cut(lengths, heads, pieces), rows), f"{len(cut(lengths, heads, pieces))} programs, then the combine"
        ),
        "one line, cut evenly": (in_line(lengths, heads, rows), f"{rows} programs, then the combine"),
    }  # fmt: skip
    ends = {name: max(bar.end for bar in bars) for name, (bars, _) in ways.items()}
    scale = LONGEST / max(ends.values())
    least = heads * sum(lengths) / rows
    panel = rows * ROW + GAP
    svg = Svg(WIDTH, 40 + len(ways) * panel + 22, alt=(
        f"{len(lengths)} sequences of {_listed(lengths)} tiles of keys, with {heads} key heads, on {rows} "
        f"multiprocessors. Done after: " + "; ".join(f"{name}, {end} tiles" for name, end in ends.items())
        + f". If all were busy all the time, it would be {number(least)}."
    ))  # fmt: skip
    svg.text(0, 14, [(f"{rows} multiprocessors", "bold"), (" · a row each, time goes right", "muted")])
    x = WIDTH - 74.0 * len(lengths)
    for n, length in enumerate(lengths):
        svg.rect(x, 5, 10, 10, COLOURS[n], rx=2)
        svg.text(x + 14, 14, f"{length} tiles", "small")
        x += 74
    for k, (name, (bars, words)) in enumerate(ways.items()):
        y = 34 + k * panel
        svg.rect(LEFT, y, LONGEST, rows * ROW, "panel", rx=2)
        for bar in bars:
            x, width = LEFT + scale * bar.start, scale * (bar.end - bar.start)
            svg.rect(x, y + bar.row * ROW, width, ROW - 1, f"{COLOURS[bar.sequence]} edged", rx=1)
        middle = y + rows * ROW / 2
        svg.text(0, middle - 6, name, "bold")
        svg.text(0, middle + 10, words, "small muted")
        end = LEFT + scale * ends[name]
        svg.line((end, y - 4), (end, y + rows * ROW + 4), "line-ink")
        svg.text(end + 6, middle + 4, str(ends[name]), "bold")
    bottom = 34 + len(ways) * panel - GAP
    x = LEFT + scale * least
    svg.line((x, 28), (x, bottom + 8), "line-green dashed")
    svg.text(x, bottom + 21, f"{number(least)} tiles each: all busy all the time", "middle small green")
    return svg.picture()


def whole(lengths: Sequence[int], heads: int) -> list[tuple[int, int]]:
    """(tiles, sequence) of the programs: one a sequence and key head."""
    return [(length, n) for n, length in enumerate(lengths) for _ in range(heads)]


def cut(lengths: Sequence[int], heads: int, pieces: int) -> list[tuple[int, int]]:
    """The same with the keys of each in at most so many pieces of equal size, the last one shorter."""
    found = []
    for length, n in whole(lengths, heads):
        each = -(-length // pieces)
        found += [(min(each, length - start), n) for start in range(0, length, each)]
    return found


def in_turn(programs: Sequence[tuple[int, int]], rows: int) -> list[Bar]:
    """When each program runs: in order, on the multiprocessor that is free first."""
    free, bars = [0] * rows, []
    for tiles, sequence in programs:
        row = min(range(rows), key=lambda i: free[i])
        bars.append(Bar(row, free[row], free[row] + tiles, sequence))
        free[row] += tiles
    return bars


def in_line(lengths: Sequence[int], heads: int, rows: int) -> list[Bar]:
    """All tiles in one line, of which every multiprocessor gets an equal run."""
    line = [n for length, n in whole(lengths, heads) for _ in range(length)]
    each = -(-len(line) // rows)
    bars = []
    for row in range(rows):
        run = line[row * each : (row + 1) * each]
        for sequence in dict.fromkeys(run):
            start = run.index(sequence)
            bars.append(Bar(row, start, start + run.count(sequence), sequence))
    return bars


def _listed(numbers: Sequence[int]) -> str:
    *some, last = map(str, numbers)
    return f"{', '.join(some)} and {last}" if some else last
