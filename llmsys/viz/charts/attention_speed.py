"""How fast each attention kernel is, shape by shape: bars that carry their own names and numbers.

The rows of a benchmark's "table" sweep, drawn with the heads' size from top to bottom, with and without a causal mask
side by side, and the length of the sequences within. A kernel of this library also says its speed as a fraction of
cuDNN's, and a pale track shows how far that one gets.
"""

from collections.abc import Sequence

from llmsys.viz.charts.kernels import SERIES
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

OURS = ("flash", "hopper")
ORDER = (*OURS, "FlexAttention", "FA2", "cuDNN")
"""From top to bottom; other names follow."""
REFERENCE = "cuDNN"
ORIGIN = {
    "FlexAttention": "torch's, in Triton",
    "FA2": "FlashAttention-2, in torch",
    "cuDNN": "NVIDIA's, in torch",
}
LEFT, PANEL, BETWEEN, LONGEST = 148, 300, 12, 204
WIDTH = LEFT + 2 * PANEL + BETWEEN
"""Pixels: names to the left of the bars, a panel, what is between two, the longest bar; and all of it."""
ROW, GROUP, HEADING = 15, 9, 32
"""Pixels: a bar with its gap, the gap between two lengths, the head of a block."""
TOP, FOOT, MARGIN = 26, 24, 16


def attention_speed(record, *, names: Sequence[str] | None = None, framed: bool = False) -> Picture:
    """TFLOP/s of each kernel for each shape of the "table" sweep, and how this library's compare with cuDNN's.

    record    a `llmsys.bench.Record` of "attention" or "attention_backward", or its rows
    names     the kernels to draw, by default all but sdpa, which is one of the others, by torch's choice
    framed    give it a ground and a margin of its own: for a file, whose reader's page may be of either theme

    Raises ValueError where there are no such rows.
    """
    rows = [row for row in getattr(record, "rows", record) if row["sweep"] == "table"]
    known = list(dict.fromkeys(row["name"] for row in rows))
    names = [name for name in names or _in_order(known) if name in known]
    if not names:
        raise ValueError("record has no table rows of these kernels: take recorded('attention')")
    found = {(row["D"], row["causal"], row["T"], row["name"]): row for row in rows if row["name"] in names}
    device = getattr(record, "device", "recorded").removeprefix("NVIDIA ")
    blocks, lengths = (len({key[i] for key in found}) for i in (0, 2))
    block = HEADING + lengths * (ROW * len(names) + GROUP)
    scale = LONGEST / max(row["tflops"] for row in found.values())
    edge = MARGIN if framed else 0
    svg = Svg(WIDTH + 2 * edge, TOP + blocks * block + FOOT + 2 * edge, alt=_in_words(found, names, device))
    if framed:
        svg.rect(0.5, 0.5, svg.width - 1, svg.height - 1, "surface", rx=14)
        svg.rect(0.5, 0.5, svg.width - 1, svg.height - 1, "line-rule", rx=14)
    with svg.group(x=edge, y=edge):
        _title(svg, found, device)
        for i, D in enumerate(sorted({key[0] for key in found})):
            here = {key[1:]: row for key, row in found.items() if key[0] == D}
            _block(svg, TOP + i * block, here, names, scale)
        svg.text(0, TOP + blocks * block + FOOT - 8, _who(names), "small muted")
    return svg.picture()


def _title(svg: Svg, found: dict[tuple, dict], device: str) -> None:
    dtypes, total = _all(found, "dtype"), {row["B"] * row["T"] for row in found.values()}
    svg.text(0, 14, [(f"Attention, {_all(found, 'pass')} pass, TFLOP/s", "bold"), (f" · {device}, {dtypes}", "muted")])
    batch = f"batches of {_short(total.pop())} tokens · " if len(total) == 1 else ""
    svg.text(WIDTH, 14, f"{batch}longer is faster", "end small muted")


def _block(svg: Svg, top: float, found: dict[tuple, dict], names: Sequence[str], scale: float) -> None:
    """Draw the shapes of one head size. `found` has their rows by (causal, T, name)."""
    masks = sorted({key[0] for key in found})
    shape = next(iter(found.values()))
    svg.rect(0, top, WIDTH, 24, "panel", rx=4)
    svg.text(8, top + 17, f"{shape['H']} heads of {shape['D']}", "bold")
    for panel, causal in enumerate(masks):
        what = "causal: half the work is counted" if causal else "every query sees every key"
        svg.text(LEFT + panel * (PANEL + BETWEEN), top + 17, what, "small")
    for j, T in enumerate(sorted({key[1] for key in found})):
        y = top + HEADING + j * (ROW * len(names) + GROUP)
        _length(svg, y, T, names)
        for panel, causal in enumerate(masks):
            here = {name: found[key] for name in names if (key := (causal, T, name)) in found}
            _bars(svg, LEFT + panel * (PANEL + BETWEEN), y, here, names, scale)


def _length(svg: Svg, y: float, T: int, names: Sequence[str]) -> None:
    middle = y + ROW * len(names) / 2
    svg.text(8, middle - 1, _short(T), "bold")
    svg.text(8, middle + 11, "tokens", "small muted")
    for n, name in enumerate(names):
        svg.text(LEFT - 8, y + n * ROW + 11, name, f"end small {'bold green' if name in OURS else ''}")


def _bars(svg: Svg, x: float, y: float, here: dict[str, dict], names: Sequence[str], scale: float) -> None:
    reference = here.get(REFERENCE)
    for n, name in enumerate(names):
        top = y + n * ROW
        if name not in here:
            svg.text(x, top + 11, "not measured", "small muted")
            continue
        width, end = scale * here[name]["tflops"], 0.0
        if name in OURS and reference:
            end = scale * reference["tflops"]
            svg.rect(x, top, end, ROW - 2, f"{_colour(REFERENCE)}-soft", rx=2)
        svg.rect(x, top, width, ROW - 2, _colour(name), rx=2)
        inside = width > 40
        svg.text(x + width + (-5 if inside else 5), top + 10.5, f"{here[name]['tflops']:.0f}",
                 "small bold on end" if inside else "small")  # fmt: skip
        if end:
            ratio = reference["ms"] / here[name]["ms"]
            svg.text(x + max(width, end) + 6, top + 10.5, f"{ratio:.2f} × {REFERENCE}", "small bold green")


def _colour(name: str) -> str:
    return SERIES.get(name, ("muted", "."))[0]


def _all(found: dict[tuple, dict], key: str) -> str:
    return " and ".join(dict.fromkeys(row[key] for row in found.values()))


def _who(names: Sequence[str]) -> str:
    ours = " and ".join(name for name in names if name in OURS)
    theirs = [f"{name}: {ORIGIN[name]}" for name in names if name in ORIGIN]
    return " · ".join([f"{ours}: this library"] * bool(ours) + theirs)


def _in_order(names: Sequence[str]) -> list[str]:
    first = [name for name in ORDER if name in names]
    rest = [name for name in names if name not in ORDER and name != "sdpa"]
    return [*first, *rest] or list(names)


def _short(T: int) -> str:
    return f"{T >> 10}k" if T % 1024 == 0 else f"{T:,}"


def _in_words(found: dict[tuple, dict], names: Sequence[str], device: str) -> str:
    def span(values: Sequence[float], digits: str) -> str:
        low, high = f"{min(values):{digits}}", f"{max(values):{digits}}"
        return low if low == high else f"{low} to {high}"

    said = []
    for name in names:
        mine = {key[:3]: row for key, row in found.items() if key[3] == name}
        text = f"{name} {span([row['tflops'] for row in mine.values()], '.0f')}"
        ratios = [theirs["ms"] / mine[key[:3]]["ms"]
                  for key, theirs in found.items() if key[3] == REFERENCE and key[:3] in mine]  # fmt: skip
        if name in OURS and ratios:
            text += f", which is {span(ratios, '.2f')} of {REFERENCE}'s"
        said.append(text)
    shapes = len({key[:3] for key in found})
    head = f"Speed of attention's {_all(found, 'pass')} pass on {device} in TFLOP/s, over {shapes} shapes"
    return f"{head}: {'; '.join(said)}."
