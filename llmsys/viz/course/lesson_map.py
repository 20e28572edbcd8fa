"""Where the reader is: the course's lessons, and the three tiers that every lesson runs on."""

from collections.abc import Iterable

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

PARTS = ("Attention", "Serving", "DeepSeek-V3", "Training at scale")
COURSE = (
    ("00", "Start here", 0), ("01", "The memory wall", 0), ("02", "Online softmax", 0), ("03", "Tiled attention", 0),
    ("04", "FlashAttention in Triton", 0), ("05", "The backward pass", 0), ("06", "FlashAttention on Hopper", 0),
    ("07", "The KV cache", 1), ("08", "Paged KV cache", 1), ("09", "Continuous batching", 1),
    ("10", "Chunked prefill and goodput", 1), ("11", "Prefill and decode apart", 1), ("12", "Speculative decoding", 1),
    ("13", "Sparse attention and caches", 1),
    ("14", "Mixture of experts", 2), ("15", "Multi-head latent attention", 2), ("16", "Multi-token prediction", 2),
    ("17", "FP8", 2),
    ("18", "Data parallelism and ZeRO", 3), ("19", "Tensor and sequence parallelism", 3),
    ("20", "Pipeline schedules", 3), ("21", "Expert parallelism", 3),
    ("22", "Recomputation", 3), ("23", "Graph fusion", 3),    ("24", "Connecting everything", 3), ("25", "Capstone", 3),
)  # fmt: skip
"""All lessons: (number, title, index of its part)."""

TIERS = {
    "pytorch": ("PyTorch", "on a CPU", "every idea, in plain tensors"),
    "interpreter": ("Triton, interpreted", "on a CPU", "look inside a GPU kernel"),
    "gpu": ("Triton, compiled", "on a GPU", "the same kernel, at full speed"),
}


def course_map(lessons: Iterable = (), done: Iterable[str] = ()) -> Picture:
    """The course's 26 lessons in four parts.

    lessons    those that can be opened: objects with `number` and `title` (the manifest's), or (number, title) pairs.
               Where there are none, all are drawn alike, as a plan.
    done       the numbers of those that the learner has finished
    """
    here, done = dict(map(_number_and_title, lessons)), set(done)
    svg = Svg(760, 396, alt=_in_words(here, done))
    width, rows = 190, [0] * len(PARTS)
    for part, title in enumerate(PARTS):
        x = part * width
        right = x + width - 4
        svg.path(
            [(x, 4), (right - 12, 4), (right - 2, 20), (right - 12, 36), (x, 36), (x + 10, 20)], "panel", close=True
        )
        svg.text(x + 18, 25, f"{('I', 'II', 'III', 'IV')[part]}  {title}", "bold")
    for number, title, part in COURSE:
        title = here.get(number, title)
        x, y = part * width + 2, 48 + 42 * rows[part]
        rows[part] += 1
        _lesson(svg, x, y, width - 16, number, title, done=number in done, here=number in here, plan=not here)
    if here:
        x, y = 2 * width + 2, 258
        for fill, line, what in (
            ("blue-soft", "line-blue", "ready: open it"),
            *([("green-soft", "line-green", "done")] if done else []),
            ("", "line-rule dashed", "being written"),
        ):
            if fill:
                svg.rect(x, y, 26, 16, fill, rx=4)
            svg.rect(x, y, 26, 16, line, rx=4)
            svg.text(x + 36, y + 13, what, "small")
            y += 24
    return svg.picture()


def _lesson(
    svg: Svg, x: float, y: float, width: float, number: str, title: str, *, done: bool, here: bool, plan: bool
) -> None:
    fill, line = (
        ("green-soft", "line-green") if done else ("blue-soft", "line-blue") if here else ("", "line-rule dashed")
    )
    if plan:
        fill, line = "panel", "line-rule"
    if fill:
        svg.rect(x, y, width, 36, fill, rx=6)
    svg.rect(x, y, width, 36, line, rx=6)
    ink = "" if here or plan else "muted"
    svg.text(x + 9, y + 23, number, f"bold {ink}")
    first, second = split(title, 22)
    if second:
        svg.text(x + 34, y + 15, first, f"small {ink}")
        svg.text(x + 34, y + 29, second, f"small {ink}")
    else:
        svg.text(x + 34, y + 22, first, f"small {ink}")
    if done:
        svg.text(x + width - 8, y + 23, "✓", "end bold green")


def tier_picture(tier: str) -> Picture:
    """The three tiers, and which of them this machine is: "pytorch", "interpreter" or "gpu".

    Raises ValueError for another.
    """
    if tier not in TIERS:
        raise ValueError(
            f"tier must be one of {', '.join(map(repr, TIERS))}, as llmsys.hardware.tier.tier() says; got {tier!r}"
        )
    best = list(TIERS).index(tier)
    name, where, _ = TIERS[tier]
    others = [f"{n} {w}: {what}" for n, w, what in TIERS.values()]
    svg = Svg(760, 168, alt=f"Three tiers. {'. '.join(others)}. The best on this machine: {name} {where}.")
    svg.rect(250, 2, 260, 30, "panel", rx=6)
    svg.text(380, 22, "one notebook, one kernel", "middle bold")
    for i, (title, where, what) in enumerate(TIERS.values()):
        x, reached = 4 + i * 256, i <= best
        svg.curve((380, 32), (x + 120, 60), "line-blue thick" if i == best else "line-rule")
        if reached:
            svg.rect(x, 60, 240, 78, "blue-soft" if i == best else "panel", rx=8)
        svg.rect(
            x, 60, 240, 78, "line-blue thick" if i == best else "line-rule" if reached else "line-rule dashed", rx=8
        )
        ink = "" if reached else "muted"
        svg.text(x + 120, 84, title, f"middle bold {ink}")
        svg.text(x + 120, 103, where, f"middle small {ink}")
        svg.text(x + 120, 124, what, f"middle small {ink}")
        said = "this machine" if i == best else "here, too" if reached else "not on this machine"
        svg.text(x + 120, 158, said, "middle bold blue" if i == best else "middle small muted")
    return svg.picture()


def split(title: str, longest: int) -> tuple[str, str]:
    """A title in one line or two, as even as words allow."""
    if len(title) <= longest:
        return title, ""
    words = title.split()
    cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return min(cuts, key=lambda cut: max(map(len, cut)), default=(title, ""))


def _number_and_title(lesson) -> tuple[str, str]:
    return (lesson.number, lesson.title) if hasattr(lesson, "number") else (lesson[0], lesson[1])


def _in_words(here: dict[str, str], done: set[str]) -> str:
    parts = []
    for i, title in enumerate(PARTS):
        numbers = [number for number, _, part in COURSE if part == i]
        parts.append(f"{title} (lessons {numbers[0]} to {numbers[-1]})")
    text = f"The map of the course, {len(COURSE)} lessons in four parts: {', '.join(parts)}."
    if here:
        text += f" Ready: {', '.join(f'{number} {title}' for number, title in sorted(here.items()))}."
    if done:
        text += f" Done: {', '.join(sorted(done))}."
    return text
