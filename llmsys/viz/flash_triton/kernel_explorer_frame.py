"""One frame of the kernel explorer: the map of tile sizes (left), the SM's resources as bars (right), a thread (below).

All that is drawn is in the step: only places are computed here.
"""

from dataclasses import dataclass

from llmsys.hardware.occupancy import Occupancy
from llmsys.viz.flash_triton.kernel_sweep import Configuration, Result
from llmsys.viz.kit.svg import Svg, Text

CELL_W, CELL_H, MAP_X, MAP_Y = 70, 62, 38, 62
LEFT, LIMIT, RIGHT = 300, 628, 758  # of the bars; what is beyond the limit does not fit
TOP, BAR = 46, 24
PITCH = 65


@dataclass(frozen=True)
class Resource:
    """One thing that an SM has so much of, and that every program takes a share of."""

    name: str
    unit: str
    share: int  # of one program
    whole: int
    reserved: int = 0  # of that share, by the system


@dataclass(frozen=True)
class Step:
    """One tile size, among all of them."""

    at: Configuration
    result: Result
    fits: Occupancy
    resources: tuple[Resource, ...]
    map: dict[tuple[int, int], tuple[Result, int]]  # (rows, keys) -> what came out, and programs an SM

    @property
    def limits(self) -> tuple[str, ...]:
        """The names of the resources that stop one more program."""
        return tuple(name for name, programs in self.fits.limits.items() if programs == self.fits.programs)


def draw(step: Step) -> Svg:
    """The picture of a step."""
    svg = Svg(760, 384, alt="")
    _map(svg, step)
    _bars(svg, step)
    _thread(svg, step)
    return svg


def _map(svg: Svg, step: Step) -> None:
    rows, keys = (sorted({cut[i] for cut in step.map}) for i in (0, 1))
    svg.text(0, 14, "programs an SM, by tile size", "bold")
    svg.text(MAP_X + CELL_W * len(keys) / 2, 38, "keys", "middle small muted")
    svg.text(0, MAP_Y - 8, "queries", "small muted")
    for j, n in enumerate(keys):
        svg.text(MAP_X + (j + 0.5) * CELL_W, MAP_Y - 8, str(n), "middle")
    for i, m in enumerate(rows):
        svg.text(MAP_X - 10, MAP_Y + (i + 0.5) * CELL_H + 4, str(m), "end")
        for j, n in enumerate(keys):
            _cell(svg, step, m, n, MAP_X + j * CELL_W, MAP_Y + i * CELL_H)
    i, j = rows.index(step.at.rows), keys.index(step.at.keys)
    svg.rect(MAP_X + j * CELL_W + 1, MAP_Y + i * CELL_H + 1, CELL_W - 2, CELL_H - 2, "line-purple thick", rx=5)


def _cell(svg: Svg, step: Step, rows: int, keys: int, x: float, y: float) -> None:
    result, programs = step.map[rows, keys]
    spills = programs and result.spill_bytes
    colour = "panel" if not programs else "orange-soft" if spills else "blue-soft"
    svg.rect(x + 3, y + 3, CELL_W - 6, CELL_H - 6, colour, rx=4)
    below = "too large" if not programs else f"spills {_bytes(spills)}" if spills else ""
    middle = x + CELL_W / 2
    svg.text(
        middle,
        y + (30 if below or not result.wgmma else 37),
        str(programs),
        f"middle big {'' if programs else 'muted'}",
    )
    if below or not result.wgmma:
        svg.text(middle, y + 47, below or "no wgmma", "middle tiny")


def _bars(svg: Svg, step: Step) -> None:
    n = step.fits.programs
    programs = "no program fits" if n == 0 else "1 program" if n == 1 else f"{n} programs"
    svg.text(LEFT, 14, ["one SM, ", (programs, "blue" if n else "orange")], "bold")
    svg.text(LIMIT + 6, 14, "all that it has", "small muted")
    for i, resource in enumerate(step.resources):
        _bar(svg, step, resource, TOP + i * PITCH)
    svg.line((LIMIT, 22), (LIMIT, TOP + (len(step.resources) - 1) * PITCH + BAR + 6), "line-ink dashed")


def _bar(svg: Svg, step: Step, resource: Resource, y: float) -> None:
    limits, n = resource.name in step.limits, step.fits.programs
    width = resource.share * (LIMIT - LEFT) / resource.whole
    own = _amount(resource.share - resource.reserved, resource.unit)
    if resource.reserved:
        reserved = _amount(resource.reserved, resource.unit)
        svg.text(LEFT, y + BAR + 14, f"and {reserved} each, which the system keeps", "small muted")
    share = f"  {own} a program" if resource.share > 1 else ""
    svg.text(LEFT, y - 6, [(resource.name, "bold orange" if limits else "bold"), (share, "muted")])
    svg.text(LIMIT + 6, y - 6, _amount(resource.whole, resource.unit), "muted")
    svg.rect(LEFT, y, LIMIT - LEFT, BAR, "panel", rx=0)
    for i in range(n):
        svg.rect(LEFT + i * width, y, width, BAR, "blue edged", rx=0)
    start, end = LEFT + n * width, LEFT + (n + 1) * width
    clipped = min(end, RIGHT)
    if limits:
        svg.rect(start, y, clipped - start, BAR, "orange-soft", rx=0)
    torn = [(clipped, y), (clipped - 5, y + BAR / 3), (clipped, y + BAR * 2 / 3), (clipped - 5, y + BAR)]
    edge = [(start, y), (clipped, y), *(torn[1:3] if end > RIGHT else ()), torn[3] if end > RIGHT else (end, y + BAR)]
    svg.path([*edge, (start, y + BAR), (start, y)], f"line-{'orange thick' if limits else 'muted'} dashed")
    if limits:
        svg.text(RIGHT, y + BAR + 14, "one more does not fit" if n else "does not fit", "end small orange bold")


def _thread(svg: Svg, step: Step) -> None:
    result, fits = step.result, step.fits
    svg.rect(0, 292, 760, 92, "panel", rx=6)
    spills: Text = (f"spills {result.spill_bytes:,} bytes", "orange bold") if result.spill_bytes else "no spills"
    left, width = 220, 255
    svg.text(14, 316, "a thread’s registers", "bold")
    svg.rect(left, 304, width, 14, "surface", rx=0)
    svg.rect(left, 304, result.registers, 14, "orange" if result.spill_bytes else "blue", rx=0)
    svg.text(left + width + 10, 316, [f"{result.registers} of 255, ", spills])
    svg.text(14, 344, "tensor cores", "bold")
    if not result.wgmma:
        svg.text(left, 344, "mma: of one warp, as on an A100; wgmma needs 64 rows")
    elif result.serialized:
        svg.text(left, 344, ["wgmma, ", ("one at a time", "orange bold"), ": no registers for a second"])
    else:
        svg.text(left, 344, "wgmma: of four warps, while other work goes on")
    svg.text(14, 372, "at work on the SM", "bold")
    rows = fits.programs * step.at.rows
    svg.text(left, 372, f"{rows} queries, {fits.warps} warps: {100 * fits.fraction:.3g} % occupancy")


def _amount(n: int, unit: str) -> str:
    return f"{n / 1024:.4g} KiB" if unit == "KiB" else f"{n:,}"


def _bytes(n: int) -> str:
    return f"{n} B" if n < 1000 else f"{n / 1000:.1f} kB"
