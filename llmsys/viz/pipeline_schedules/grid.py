"""One moment of the editor: the rows as far as they are, each rank's idle time and memory, and what is the matter."""

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.svg import Svg
from llmsys.viz.pipeline_schedules.edited import Moment
from llmsys.viz.pipeline_schedules.rows import BOX, LEFT, RIGHT, ROW, axis, key, kinds_of, rows

TOP = 22
LINE = 18
LINES = 4
"""Lines of the text below at most."""


def draw(moment: Moment) -> Svg:
    """The moment as a picture."""
    ranks = moment.ran.schedule.num_ranks
    end = moment.ran.timeline.end or 1.0
    scale = (RIGHT - LEFT) / (1.08 * end if moment.ran.waits else end)  # with room for what waits
    panel = TOP + ROW * ranks + 44
    svg = Svg(760, panel + LINE * LINES + 12, alt="")
    for x, words, classes in ((692, "idle", "muted"), (727, "keeps", "purple"), (758, "most", "purple")):
        svg.text(x, TOP - 6, words, f"end tiny {classes}")
    rows(svg, TOP, moment.events, set(), scale, RIGHT - LEFT)
    waiting = {wait.rank for wait in moment.ran.waits} if moment.last else set()
    for rank in range(ranks):
        y = TOP + ROW * rank + 14
        svg.text(692, y, number(moment.idle(rank)), "end small bold")
        svg.text(727, y, number(moment.keeps(rank)), "end small purple")
        svg.text(758, y, number(moment.most(rank)), "end small bold purple")
        if rank in waiting:
            wait = next(each for each in moment.ran.waits if each.rank == rank)
            x = LEFT + scale * max((event.end for event in moment.events[rank]), default=0.0)
            x = min(x, RIGHT - 34)
            svg.rect(x + 1, TOP + ROW * rank, 32, BOX, "surface", rx=2)
            svg.rect(x + 1, TOP + ROW * rank, 32, BOX, "line-purple thick dashed", rx=2)
            svg.text(x + 17, y, f"{wait.action.kind}{wait.action.microbatch}?", "middle tiny bold purple")
    axis(svg, TOP + ROW * ranks + 10, end, scale)
    key(svg, TOP + ROW * ranks + 32, kinds_of(moment.ran.events))
    svg.rect(0, panel, 760, LINE * LINES + 12, "panel", rx=6)
    trouble = moment.last and (moment.ran.waits or moment.missing)
    svg.text(14, panel + 20, moment.head, "bold purple" if trouble else "bold")
    shown = moment.tail[: LINES - 1]
    for n, line in enumerate(shown):
        more = len(moment.tail) - len(shown)
        if more and n == len(shown) - 1:
            line += f" (and {more} more)"
        svg.text(14, panel + 20 + LINE * (n + 1), line)
    return svg
