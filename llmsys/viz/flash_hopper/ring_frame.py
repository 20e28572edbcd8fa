"""One frame of the ring stepper: the producer and the copy engine, each slot with its two barriers, the consumers.

All that is drawn is in the step: only places are computed here.
"""

from dataclasses import dataclass

from llmsys.hardware.mbarrier import BarrierState, Event
from llmsys.viz.kit.svg import Svg

SIDE, RIGHT = 138, 621  # the columns of who acts: as wide as this, and the right one's left
SLOT, STRIP, NEEDS = 152, 306, 446  # the left of a slot's tile, of its barriers' phases, and of what they need
TOP, ROW, CELL = 42, 92, 24
SHOWN = 5
"""Phases that are shown."""


@dataclass(frozen=True)
class Step:
    """How things stand after an event, and what it changed."""

    event: Event
    reads: dict[str, tuple[int, ...]]
    """For each consumer, the tiles that it has read."""
    started: int = 0
    """Copies that the producer has started."""
    changed: frozenset[str] = frozenset()
    """Names of the barriers that are not what they were before the event."""
    ended: str = ""
    """The phase that the event has ended: "phase 0 of full[1]"."""
    error: str = ""
    """Why it does not go on; of the last step only."""


def draw(step: Step) -> Svg:
    """The picture of a step."""
    slots = len(step.event.tiles)
    height = max(TOP + ROW * slots, TOP + ROW * len(step.reads), 226)
    svg = Svg(760, height + 30, alt="")
    heads = {1: "fills", SLOT: "slot", STRIP: "phases’ parities", NEEDS: "this phase needs", RIGHT: "reads"}
    for x, name in heads.items():
        svg.text(x, 14, name, "bold")
    copies = "1 copy" if step.started == 1 else f"{step.started} copies"
    _actor(svg, step, "producer", 1, TOP - 14, f"{copies} started")
    coming = [str(tile) for tile, copied in zip(step.event.tiles, step.event.copying, strict=True) if copied]
    _actor(svg, step, "copy engine", 1, TOP + ROW - 14, f"brings tile {' and '.join(coming)}" if coming else "idle")
    for slot in range(slots):
        _slot(svg, step, slot, TOP - 14 + ROW * slot)
    for j, (name, reads) in enumerate(step.reads.items()):
        _actor(svg, step, name, RIGHT, TOP - 14 + ROW * j, _read(reads))
    x = 1
    for classes, said in (("green-soft", "ended"), ("orange-soft", "under way"), ("panel", "to come")):
        svg.rect(x, height + 10, 16, 14, classes, rx=2)
        svg.text(x + 22, height + 21, said, "small")
        x += 90
    svg.text(x + 20, height + 21, "a wait for parity p goes on where the last phase that ended has parity p",
             "small muted")  # fmt: skip
    return svg


def _actor(svg: Svg, step: Step, name: str, x: float, y: float, line: str) -> None:
    """The box of a producer, a consumer or the copy engine: what it does, and what it waits for."""
    acts, waits = step.event.who == name and not step.error, step.event.waiting.get(name)
    svg.rect(x, y, SIDE, 84, "orange-soft" if acts else "panel", rx=5)
    svg.rect(x, y, SIDE, 84, "line-orange" if acts else "line-purple dashed" if waits else "line-rule", rx=5)
    svg.text(x + 10, y + 20, name, "bold")
    svg.text(x + 10, y + 38, line, "small")
    if waits:
        parity, barrier = waits.removeprefix("wait for ").split(" of ")
        svg.text(x + 10, y + 58, f"waits for {parity}", "small bold purple")
        svg.text(x + 10, y + 73, f"of {barrier}", "small bold purple")


def _slot(svg: Svg, step: Step, slot: int, y: float) -> None:
    event = step.event
    tile, copied = event.tiles[slot], event.copying[slot]
    svg.rect(SLOT, y, 86, 84, "panel" if tile is None else "orange-soft" if copied else "blue-soft", rx=4)
    svg.rect(SLOT, y, 86, 84, "line-orange dashed" if copied else "line-rule" if tile is None else "line-blue", rx=4)
    svg.text(SLOT + 43, y + 18, f"slot {slot}", "middle small")
    svg.text(SLOT + 43, y + 46, "–" if tile is None else f"tile {tile}", "middle big bold")
    svg.text(
        SLOT + 43, y + 68, "no tile yet" if tile is None else "being copied" if copied else "is there", "middle small"
    )
    for row, barrier in enumerate((event.full[slot], event.empty[slot])):
        _barrier(svg, step, barrier, y + 8 + 42 * row)


def _barrier(svg: Svg, step: Step, barrier: BarrierState, y: float) -> None:
    """A barrier: its phases as a row of parities, beginning before the first, and what the phase under way needs."""
    changed = barrier.name in step.changed
    svg.text(STRIP - 8, y + 17, barrier.name, f"end small bold {'orange' if changed else ''}")
    first = max(barrier.phase - SHOWN + 2, -1)
    for n, phase in enumerate(range(first, first + SHOWN)):
        x = STRIP + CELL * n
        hue = "green-soft" if phase < barrier.phase else "orange-soft" if phase == barrier.phase else "panel"
        svg.rect(x, y, CELL - 2, CELL, hue, rx=2)
        svg.text(x + CELL / 2 - 1, y + 17, str(phase % 2), "middle" if phase != barrier.phase else "middle bold")
        if phase == barrier.phase:
            svg.rect(x, y, CELL - 2, CELL, "line-orange thick" if changed else "line-orange", rx=2)
        elif phase < 0:  # the one that counts as ended
            svg.rect(x, y, CELL - 2, CELL, "line-green dashed", rx=2)
    waiting = [who for who, what in step.event.waiting.items() if what.endswith(f" of {barrier.name}")]
    svg.text(NEEDS, y + (11 if waiting else 17), _needs(barrier), "small")
    if waiting:
        who = f"{waiting[0]} waits" if len(waiting) == 1 else f"{len(waiting)} wait"
        svg.text(NEEDS, y + 25, who, "small bold purple")


def _needs(barrier: BarrierState) -> str:
    parts = []
    if barrier.missing:
        parts.append("1 arrival" if barrier.missing == 1 else f"{barrier.missing} arrivals")
    if barrier.nbytes > 0:
        parts.append(f"{barrier.nbytes:,} bytes")
    elif barrier.nbytes:
        parts.append(f"{-barrier.nbytes:,} bytes announced")
    return " and ".join(parts)


def _read(reads: tuple[int, ...]) -> str:
    last = reads[-5:]
    return f"read {'… ' if len(reads) > 5 else ''}{', '.join(map(str, last))}" if reads else "has read nothing"
