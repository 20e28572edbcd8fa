"""How fast each attention kernel is, shape by shape: bars that carry their own names and numbers.

The rows of a benchmark's "table" sweep, drawn with the heads' size from top to bottom, with and without a causal mask
side by side, and the length of the sequences within. A kernel of this library also says its speed as a fraction of the
fastest library's, and a pale track shows how far that one gets.
"""

from collections.abc import Sequence

from llmsys.viz.attention_charts import SERIES
from llmsys.viz.picture import Picture
from llmsys.viz.svg import Svg

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
"""Pixels: names to the left of the bars, a panel, what is between two, the longest bar."""
ROW, GROUP, HEADING = 15, 9, 32
"""Pixels: a bar with its gap, the gap between two lengths, the head of a block."""


def attention_speed(record, *, names: Sequence[str] | None = None) -> Picture:
    """TFLOP/s of each kernel for each shape of the "table" sweep, and how this library's compare with cuDNN's.

    record    a `llmsys.bench.Record` of "attention" or "attention_backward", or its rows
    names     the kernels to draw, by default all but sdpa, which is one of the others, by torch's choice

    Raises ValueError where there are no such rows.
    """
    rows = [row for row in getattr(record, "rows", record) if row["sweep"] == "table"]
    known = list(dict.fromkeys(row["name"] for row in rows))
    names = [name for name in names or _in_order(known) if name in known]
    if not names:
        raise ValueError("record has no table rows of these kernels: take recorded('attention')")
    found = {(row["D"], row["causal"], row["T"], row["name"]): row for row in rows if row["name"] in names}
    heads, masks, lengths = (sorted({key[i] for key in found}) for i in range(3))
    block = HEADING + len(lengths) * (ROW * len(names) + GROUP)
    device = getattr(record, "device", "recorded").removeprefix("NVIDIA ")
    passes = " and ".join(dict.fromkeys(row["pass"] for row in found.values()))
    svg = Svg(LEFT + 2 * PANEL + BETWEEN, 50 + block * len(heads), alt=_in_words(found, names, device, passes))
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in found.values()))
    svg.text(0, 14, [("Attention, ", "bold"), (f"{passes} pass, TFLOP/s", "bold"), (f" · {device}, {dtypes}", "muted")])
    total = {row["B"] * row["T"] for row in found.values()}
    batch = f"batches of {_short(total.pop())} tokens · " if len(total) == 1 else ""
    svg.text(svg.width, 14, f"{batch}longer is faster", "end small muted")
    scale = LONGEST / max(row["tflops"] for row in found.values())
    for i, D in enumerate(heads):
        top = 26 + i * block
        _heading(svg, top, next(f"{row['H']} heads of {D}" for row in found.values() if row["D"] == D), masks)
        for j, T in enumerate(lengths):
            y = top + HEADING + j * (ROW * len(names) + GROUP)
            _length(svg, y, T, names)
            for panel, causal in enumerate(masks):
                here = {name: found[key] for name in names if (key := (D, causal, T, name)) in found}
                _bars(svg, LEFT + panel * (PANEL + BETWEEN), y, here, names, scale)
    svg.text(0, svg.height - 8, _who(names), "small muted")
    return svg.picture()


def _heading(svg: Svg, top: float, heads: str, masks: Sequence[bool]) -> None:
    svg.rect(0, top, svg.width, 24, "panel", rx=4)
    svg.text(8, top + 17, heads, "bold")
    for panel, causal in enumerate(masks):
        what = "causal: half the work is counted" if causal else "every query sees every key"
        svg.text(LEFT + panel * (PANEL + BETWEEN), top + 17, what, "small")


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


def _in_words(found: dict[tuple, dict], names: Sequence[str], device: str, passes: str) -> str:
    def span(values: Sequence[float], digits: str) -> str:
        low, high = f"{min(values):{digits}}", f"{max(values):{digits}}"
        return low if low == high else f"{low} to {high}"

    said = []
    for name in names:
        speeds = [row["tflops"] for key, row in found.items() if key[3] == name]
        text = f"{name} {span(speeds, '.0f')}"
        both = [(row, found[(*key[:3], REFERENCE)]) for key, row in found.items()
                if key[3] == name and (*key[:3], REFERENCE) in found]  # fmt: skip
        if name in OURS and both:
            text += f", which is {span([theirs['ms'] / ours['ms'] for ours, theirs in both], '.2f')} of {REFERENCE}'s"
        said.append(text)
    shapes = len({key[:3] for key in found})
    return f"Speed of attention's {passes} pass on {device} in TFLOP/s, over {shapes} shapes: {'; '.join(said)}."
