"""How fast attention reads a paged cache: each kernel's share of a copy's speed, and what small pages cost.

Rows of `llmsys bench paged_decode`. Kernels, shapes and sizes of pages are those of the record, whichever they are.
"""

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

COPY, DENSE = "copy", "dense"
SERIES = (("blue", "o"), ("orange", "s"), ("purple", "^"))
"""Colour and marker of each kernel over pages, in the records' order. The dense peer is green."""
ALONG = 3
"""A shape with so many sizes of pages, or more, has a line in the panel on the right."""


def decode_speed(*records, page: int = 16) -> Picture:
    """Left: for each shape, with pages of `page` tokens, each kernel's speed as a share of a copy's. Right: GB/s
    against the size of pages. A row of panels for each record.

    records    `llmsys.bench.Record`s of the paged_decode benchmark

    Raises ValueError where a record has no such rows.
    """
    import matplotlib.pyplot as plt

    if not records:
        raise ValueError("records must be one at least: take recorded('paged_decode')")
    found = [_shares(record, page) for record in records]
    looks = _looks(row["name"] for record in records for row in record.rows)
    heights = [1.4 + 0.3 * len(shapes) for shapes in found]
    with chart_style():
        figure, panels = plt.subplots(
            len(records), 2, figsize=(7.6, sum(heights)), squeeze=False, width_ratios=(1.25, 1), height_ratios=heights
        )
        for (left, right), record, shapes in zip(panels, records, found, strict=True):
            _by_shape(left, shapes, page, looks)
            left.set(title=_device(record))
            _by_page(right, [row for row in record.rows if row["name"] not in (COPY, DENSE)], looks)
        named = {
            name: line for left in panels[:, 0] for line, name in zip(*left.get_legend_handles_labels(), strict=True)
        }
        figure.legend(named.values(), named, frameon=False, fontsize=8.5, loc="outside upper left", ncols=len(named),
                      handletextpad=0.2)  # fmt: skip
    said = " ".join(_in_words(record, shapes, page) for record, shapes in zip(records, found, strict=True))
    return chart(figure, alt=f"Attention of one new token a sequence over a paged cache, against a copy. {said}")


def _shares(record, page: int) -> dict[str, dict[str, float]]:
    """Shape -> name -> share of the copy's speed, with pages of that size, from the fewest bytes to the most."""
    rows = sorted(record.rows, key=lambda row: row["bytes"])
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["page"] == page and row["name"] != COPY:
            found.setdefault(row["shape"], {})[row["name"]] = row["of_copy"]
    if not found:
        raise ValueError(f"record of {record.benchmark} on {record.device} has no rows with pages of {page}: take "
                         "recorded('paged_decode')")  # fmt: skip
    return found


def _looks(names) -> dict[str, tuple[str, str]]:
    kernels = [name for name in dict.fromkeys(names) if name not in (COPY, DENSE)]
    return dict(zip(kernels, SERIES, strict=False)) | {DENSE: ("green", "D")}


def _by_shape(axes, shapes: dict[str, dict[str, float]], page: int, looks: dict) -> None:
    for name, (colour, marker) in looks.items():
        points = [(here[name], y) for y, here in enumerate(shapes.values()) if name in here]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=LIGHT[colour], ms=6,
                      mfc="none" if name == DENSE else LIGHT[colour], mew=1.5, label=_called(name))  # fmt: skip
    axes.axvline(1, color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)))
    axes.set_yticks(range(len(shapes)), [_short(shape) for shape in shapes], fontsize=8)
    axes.set(xlabel=f"share of the copy's speed, pages of {page}", xlim=(0, 1.08), ylim=(-0.6, len(shapes) - 0.4))
    axes.grid(axis="both")


def _by_page(axes, rows, looks: dict) -> None:
    """Of those that have pages. (Without them, the dense cache has the same speed at each size.)"""
    pages = sorted({row["page"] for row in rows})
    shapes = dict.fromkeys(row["shape"] for row in rows)
    along = [shape for shape in shapes if len({row["page"] for row in rows if row["shape"] == shape}) >= ALONG]
    for style, shape in zip(("-", "--", ":"), along, strict=False):
        for name, (colour, marker) in looks.items():
            line = sorted((row["page"], row["gbps"]) for row in rows if (row["shape"], row["name"]) == (shape, name))
            if line:
                axes.plot(*zip(*line, strict=True), style, marker=marker, color=LIGHT[colour], lw=1.4)
        axes.plot([], [], style, color=LIGHT["muted"], lw=1.4, label=_short(shape))
    axes.set(xscale="log", xlabel="tokens in a page", ylim=(0, None))
    axes.set_title("GB/s of keys and values")
    axes.set_xticks(pages, [str(page) for page in pages])
    axes.minorticks_off()
    axes.grid(axis="y")
    if along:
        axes.legend(frameon=False, fontsize=8, loc="lower left")


def _called(name: str) -> str:
    return "dense cache, no pages" if name == DENSE else name


def _short(shape: str) -> str:
    """ "B 64, 32/8 heads of 128, L 1024" as "64 × 1024, 32/8 heads of 128"."""
    batch, heads, length = shape.split(", ")
    return f"{batch.removeprefix('B ')} × {length.removeprefix('L ')}, {heads}"


def _device(record) -> str:
    return record.device.removeprefix("NVIDIA ")


def _in_words(record, shapes: dict[str, dict[str, float]], page: int) -> str:
    said = [
        f"{_short(shape)}: " + ", ".join(f"{_called(name)} {number(share, 2)}" for name, share in here.items())
        for shape, here in shapes.items()
    ]
    return f"On {_device(record)}, pages of {page}, share of the copy's speed: {'; '.join(said)}."
