"""The README's picture: the course as a zoom out, from one kernel to a cluster, with the lessons that are there filled.

Each panel is small but not invented: which tiles a causal attention visits, requests that share slots and blocks, the
experts that a router picks, the order of a 1F1B pipeline (https://arxiv.org/abs/2104.04473), all worked out below.
"""

import random
from collections.abc import Iterable

from llmsys.viz.course.parts import NUMERALS, Entry, in_parts
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

WIDTH, HEIGHT, PANEL, GAP, TOP = 1000, 470, 226, 16, 96
HUES = ("blue", "orange", "purple", "green")
SCENES = (
    ("one kernel", "scores that never exist in memory"),
    ("one GPU", "thousands of requests, one KV cache"),
    ("one model", "256 experts, 8 to a token"),
    ("2,048 GPUs", "forward, backward, and the bubble"),
)


def cover(lessons: Iterable[Entry], planned: Iterable[Entry] = ()) -> Picture:
    """The course in one picture.

    lessons    those that can be opened, objects with `number`, `title` and `part`: `lessons()` of the manifest
    planned    those that are not there yet: `planned()` of the manifest

    Raises ValueError where these lessons are not of four parts, for which there are drawings.
    """
    lessons = sorted(lessons, key=lambda lesson: lesson.number)
    parts = in_parts([*lessons, *planned])
    if len(parts) != len(SCENES):
        raise ValueError(
            f"lessons and planned must be those of {len(SCENES)} parts together, got {', '.join(parts) or 'none'}"
        )
    ready = [f"{each.number} {each.title}" for each in lessons]
    svg = Svg(WIDTH, HEIGHT, alt=(
        "llmsys, a course that you run: build an LLM system, from one kernel to 2,048 GPUs. Four parts, each a zoom "
        f"out: {'; '.join(f'{part}, {scene}' for part, (scene, _) in zip(parts, SCENES, strict=True))}. "
        f"Ready to open: {', '.join(ready) or 'none yet'}."
    ))  # fmt: skip
    svg.rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "surface", rx=14)
    svg.rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "line-rule", rx=14)
    svg.text(24, 44, "llmsys", "huge bold")
    svg.text(
        24, 72, "Build an LLM system, from one kernel to 2,048 GPUs. Every part runs, in a real model.", "big muted"
    )
    drawings = (_attention, _serving, _experts, _pipeline)
    for part, (title, draw, (scene, what)) in enumerate(zip(parts, drawings, SCENES, strict=True)):
        x = 24 + part * (PANEL + GAP)
        if part:  # the panel before, seen from further away
            svg.path([(x - GAP, TOP), (x, TOP + 90), (x, TOP + 130), (x - GAP, TOP + 286)], "rule", close=True)
        svg.rect(x, TOP, PANEL, 286, "panel", rx=10)
        svg.text(x + 14, TOP + 26, f"{NUMERALS[part]}  {title}", "bold big")
        svg.text(x + 14, TOP + 46, scene, "muted")
        with svg.group(x=x + 14, y=TOP + 62):
            draw(svg, PANEL - 28, 182)
        svg.text(x + 14, TOP + 270, what, "small")
    _chips(svg, parts, {each.number for each in lessons})
    svg.text(24, HEIGHT - 20, [("Open now:  ", "bold"), (" · ".join(ready) or "soon", "bold blue")])
    svg.text(WIDTH - 24, HEIGHT - 20, "predict · write · check · measure on an H100", "end muted")
    return svg.picture()


def _chips(svg: Svg, parts: dict[str, list[Entry]], ready: set[str]) -> None:
    """The numbers of the lessons, below their part's panel; those that can be opened are filled."""
    for part, lessons in enumerate(parts.values()):
        for k, lesson in enumerate(lessons):
            x, y = 24 + part * (PANEL + GAP) + k * 28.4, TOP + 300
            lit = lesson.number in ready
            svg.rect(x, y, 26, 24, "blue" if lit else "line-rule", rx=6)
            svg.text(x + 13, y + 16, lesson.number, "middle small bold on" if lit else "middle small muted")


def _attention(svg: Svg, width: float, height: float) -> None:
    """Causal attention in tiles: those that are done, the one at work, those to come, and those never computed."""
    n, row, column = 8, 5, 3
    size = height / n
    for i in range(n):
        for j in range(n):
            if j > i:
                continue
            done, now = (i, j) < (row, column), (i, j) == (row, column)
            fill = "orange" if now else "blue" if done and i == row else "blue-soft" if done else "line-rule dashed"
            svg.rect(j * size + 1, i * size + 1, size - 3, size - 3, fill, rx=3)
    y = (row + 0.5) * size
    svg.arrow(((column + 1) * size + 2, y), (6.3 * size, y), "orange", more="thick")
    x = 6.4 * size
    svg.rect(x, y - 20, width - x, 40, "orange-soft", rx=6)
    svg.text((x + width) / 2, y - 3, "m, ℓ, o", "middle bold")
    svg.text((x + width) / 2, y + 13, "all it keeps", "middle tiny")
    svg.text(width, 12, "keys →", "end small muted")


def _serving(svg: Svg, width: float, height: float) -> None:
    """Continuous batching over a pool of blocks: who computes when, and which block belongs to whom at the line."""
    rng, slots, steps, now = random.Random(4), 5, 22, 11
    cell, top = width / steps, 16
    owners = []
    svg.text(0, 8, "slots, over time", "small muted")
    for slot in range(slots):
        t, request = 0, slot
        while t < steps:
            length = min(rng.randint(4, 11), steps - t)
            hue = HUES[request % 4]
            prefill = min(2, length)
            svg.rect(t * cell, top + slot * 17, prefill * cell - 1.5, 14, hue, rx=2)
            svg.rect((t + prefill) * cell, top + slot * 17, (length - prefill) * cell - 1.5, 14, f"{hue}-soft", rx=2)
            if t <= now < t + length:
                owners.append((hue, now - t + 2))  # a block for every step that it has been there, and one to grow
            t += length
            request += 1
    svg.line(((now + 1) * cell - 0.8, top - 5), ((now + 1) * cell - 0.8, top + slots * 17), "line-ink")
    columns, rows = 11, 3
    pool = [hue for hue, blocks in owners for _ in range(blocks)][: columns * rows - 2]
    pool += [""] * (columns * rows - len(pool))
    rng.shuffle(pool)
    side, y = width / columns, top + slots * 17 + 24
    svg.text(0, y - 6, "KV blocks, wherever there was room", "small muted")
    for k, hue in enumerate(pool):
        x, row = (k % columns) * side, k // columns
        svg.rect(x + 0.5, y + row * side * 1.05, side - 3, side - 3, f"{hue}-soft" if hue else "line-rule dashed", rx=3)
        if hue:
            svg.rect(x + 0.5, y + row * side * 1.05, side - 3, side - 3, f"line-{hue}", rx=3)


def _experts(svg: Svg, width: float, height: float) -> None:
    """A router: each token goes to the experts that score best for it; the bars are what each expert got."""
    rng, tokens, experts, chosen = random.Random(7), 6, 16, 3
    load = [0] * experts
    bias = [rng.gauss(0, 0.6) for _ in range(experts)]
    spread, foot = width / tokens, height - 68
    for token in range(tokens):
        x = (token + 0.5) * spread
        scores = [bias[e] + rng.gauss(0, 1) for e in range(experts)]
        best = sorted(range(experts), key=scores.__getitem__)[-chosen:]
        for e in best:
            load[e] += 1
            hue = HUES[token % 4]
            svg.curve((x, 34), ((e + 0.5) * width / experts, foot), f"line-{hue}")
    for token in range(tokens):
        x = (token + 0.5) * spread
        svg.rect(x - 13, 12, 26, 22, f"{HUES[token % 4]}-soft", rx=5)
        svg.rect(x - 13, 12, 26, 22, f"line-{HUES[token % 4]}", rx=5)
    svg.text(0, 4, "tokens", "small muted")
    for e, count in enumerate(load):
        x = e * width / experts
        svg.rect(x + 1, foot, width / experts - 2, 14, "rule", rx=3)
        svg.rect(x + 1, foot + 18, width / experts - 2, 8 * count, "muted", rx=1)
    svg.text(0, foot + 60, "experts, and their load", "small muted")


def _pipeline(svg: Svg, width: float, height: float) -> None:
    """1F1B over eight ranks: forwards (blue, 1 unit) and backwards (orange, 2 units) of eight micro-batches."""
    ranks = micro = 8
    actions = one_f_one_b(ranks, micro)
    last = max(end for *_, end in actions)
    unit, row = width / last, (height - 28) / ranks
    svg.text(0, 4, "8 ranks, over time", "small muted")
    for rank in range(ranks):
        svg.rect(0, 14 + rank * row, width, row - 3, "surface", rx=2)
    for kind, rank, batch, start, end in actions:
        hue = "blue" if kind == "F" else "orange"
        fill = hue if batch % 2 == 0 else f"{hue}-soft"
        svg.rect(start * unit + 0.4, 14 + rank * row, (end - start) * unit - 0.8, row - 3, fill, rx=1.5)
    busy = sum(end - start for *_, start, end in actions)
    svg.text(width, height + 4, f"1F1B here: {100 * (1 - busy / (last * ranks)):.0f}% idle", "end small muted")


def one_f_one_b(ranks: int, micro: int) -> list[tuple[str, int, int, int, int]]:
    """A 1F1B schedule, worked out: (kind, rank, micro-batch, start, end), each action as early as it can be.

    Rank r starts with ranks − r − 1 forwards, then alternates one forward, one backward, then drains. A forward takes
    1, a backward 2.
    """
    queues = []
    for rank in range(ranks):
        warm = min(ranks - rank - 1, micro)
        steady = [action for i in range(micro - warm) for action in (("F", warm + i), ("B", i))]
        queues.append([("F", i) for i in range(warm)] + steady + [("B", i) for i in range(micro - warm, micro)])
    ends: dict[tuple[str, int, int], int] = {}
    free, done = [0] * ranks, []
    while any(queues):
        for rank, queue in enumerate(queues):
            if not queue:
                continue
            kind, batch = queue[0]
            before = ("F", rank - 1, batch) if kind == "F" else ("B", rank + 1, batch)
            if 0 <= before[1] < ranks and before not in ends:
                continue
            start = max(free[rank], ends.get(before, 0))
            free[rank] = ends[kind, rank, batch] = start + (1 if kind == "F" else 2)
            done.append((kind, rank, batch, start, free[rank]))
            queue.pop(0)
    return done
