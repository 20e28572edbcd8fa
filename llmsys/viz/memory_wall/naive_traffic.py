"""What the three kernels of naive attention move between memory and chip.

Widths are drawn to scale; the sum of the bytes is that of the library's own `naive_cost`.
"""

from llmsys.attention.cost import naive_cost
from llmsys.viz.kit.numbers import number, size_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


def naive_traffic(T: int, D: int, *, itemsize: int = 2) -> Picture:
    """What the three kernels of naive attention move for one head, as beams whose width is their bytes.

    T, D        tokens and head size
    itemsize    bytes of an element: 2 for bf16, 4 for fp32

    Raises ValueError where a number is not positive.
    """
    if min(T, D, itemsize) < 1:
        raise ValueError(f"T, D and itemsize must be positive, got {T}, {D} and {itemsize}")
    total = naive_cost(1, 1, T, D, itemsize=itemsize).hbm_bytes
    small, large = itemsize * T * D, itemsize * T * T
    kernels = (
        ("q kᵀ", (("q", small), ("k", small)), ("S", large)),
        ("softmax", (("S", large),), ("P", large)),
        ("P v", (("P", large), ("v", small)), ("o", small)),
    )
    once = 4 * small
    share = 100 * 4 * large / total
    said = "; ".join(
        f"{name} reads {' and '.join(f'{n}, {size_in_words(b)}' for n, b in reads)}, and writes {written[0]}, "
        f"{size_in_words(written[1])}"
        for name, reads, written in kernels
    )
    svg = Svg(760, 326, alt=(
        f"Traffic of naive attention between memory and chip, one head of {T:,} tokens of {D}: {said}. In all "
        f"{size_in_words(total)}, of which S and P are {share:.0f}%; q, k, v and o, once each, would be "
        f"{size_in_words(once)}."
    ))  # fmt: skip
    scale = (750 - LEFT - 2 * BETWEEN - 5 * GAP) / total
    svg.text(0, 48, "memory", "bold")
    svg.text(0, 194, "the chip", "bold")
    x = float(LEFT)
    for name, reads, written in kernels:
        start = x
        for tensor, size in (*reads, written):
            _beam(svg, x, scale * size, tensor, size, up=tensor == written[0])
            x += scale * size + GAP
        x -= GAP
        svg.rect(start - 4, 174, x - start + 8, 32, "line-ink", rx=5)
        svg.text((start + x) / 2, 195, name, "middle bold")
        x += BETWEEN
    _bar(svg, 236, "three kernels", ((4 * large, "orange"), (3 * small, "blue"), (small, "green")), scale,
         f"{size_in_words(total)}: {share:.0f}% of it S and P, twice out and twice back")  # fmt: skip
    _bar(svg, 282, "q, k, v, o once", ((3 * small, "blue"), (small, "green")), scale,
         f"{size_in_words(once)}, if S and P stayed on the chip: {number(total / once)} times less")  # fmt: skip
    return svg.picture()


LEFT, GAP, BETWEEN = 112, 22, 34
"""Pixels to the left of the beams, between two of a kernel, and between two kernels."""


def _beam(svg: Svg, x: float, width: float, tensor: str, size: int, *, up: bool) -> None:
    """A tensor that is read, as a beam from its block of memory (top) to the chip (bottom), or written, upwards."""
    hue = "orange" if tensor in "SP" else "green" if tensor == "o" else "blue"
    middle, least = x + width / 2, max(width, 1.5)
    svg.rect(middle - least / 2, 28, least, 30, hue, rx=0)
    svg.rect(middle - least / 2, 60, least, 110, f"{hue}-soft", rx=0)
    tip, foot = (66, 78) if up else (168, 156)
    svg.path([(middle, tip), (middle - 7, foot), (middle + 7, foot)], hue, close=True)
    svg.text(middle, 20, tensor, f"middle bold {hue}")
    if width > 64:
        svg.text(middle, 112, "written" if up else "read", "middle small")
        svg.text(middle, 128, size_in_words(size), "middle small bold")


def _bar(svg: Svg, y: float, name: str, parts: tuple[tuple[int, str], ...], scale: float, words: str) -> None:
    svg.text(0, y + 14, name, "bold")
    x = float(LEFT)
    for size, hue in parts:
        svg.rect(x, y, max(scale * size, 1), 18, hue, rx=0)
        x += scale * size
    svg.text(LEFT, y + 34, words, "small")
