"""Two drawings of lesson 01: where naive attention's matrices live, and what its three kernels move.

Sizes are drawn to scale, and are those of the library's own `naive_cost`.
"""

from llmsys.attention.cost import naive_cost
from llmsys.hardware.devices import DEVICES
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg, number
from llmsys.viz.roofline.axes import rate, seconds_in_words


def memory_wall_overview() -> Picture:
    """Lesson 01 in one picture: S and P leave the chip and come back, and the chip waits for them."""
    T, D, size = 4096, 128, 2
    device = DEVICES["H100 SXM"]
    cost = naive_cost(1, 1, T, D, itemsize=size)
    small, large = size * T * D, size * cost.score_elements
    moving, computing = cost.hbm_bytes / device.bandwidth, cost.flops / device.flops["bfloat16"]
    svg = Svg(760, 388, alt=(
        f"Naive attention of one head with {T:,} tokens of {D}, to scale. In HBM, the GPU's memory, lie q, k, v and o, "
        f"slim strips of {size_in_words(small)} each, and S and P, large squares of {size_in_words(large)} each. Three "
        "kernels run on the chip, one after another: q kᵀ reads q and k and writes S; the softmax reads S and writes "
        f"P; P v reads P and v and writes o. On an H100 moving all that takes {seconds_in_words(moving)}, computing it "
        f"{seconds_in_words(computing)}."
    ))  # fmt: skip
    side, top = 128, 46
    slim = side * D / T
    svg.rect(0, 4, 760, 190, "panel", rx=8)
    svg.text(14, 26, [("HBM, the GPU's memory", "bold"), f" · {device.memory_bytes >> 30} GiB, "
                      f"{number(device.bandwidth / 1e12)} TB/s"])  # fmt: skip
    svg.text(746, 26, "areas to scale: one head, T = 4096, D = 128, bf16", "end small muted")
    svg.rect(0, 244, 760, 66, "panel", rx=8)
    svg.text(14, 300, [("the chip", "bold"), f" · {device.sms} × {device.sram_bytes_per_sm >> 10} KiB, "
                       f"{rate(device.flops['bfloat16'])}"])  # fmt: skip
    kernels = ((150, "q kᵀ"), (380, "softmax"), (610, "P v"))
    for n, (x, name) in enumerate(kernels, start=1):
        svg.rect(x - 56, 252, 112, 30, "surface", rx=5)
        svg.rect(x - 56, 252, 112, 30, "line-green", rx=5)
        svg.text(x, 272, [(f"{n} · ", "muted"), (name, "bold")], "middle")
    for x, name in ((92, "q"), (116, "k"), (668, "v"), (716, "o")):
        svg.rect(x - slim / 2, top, slim, side, "green" if name == "o" else "blue", rx=0)
        svg.text(x, top + side + 15, name, "middle bold")
    for x, name in ((265, "S"), (495, "P")):
        svg.rect(x - side / 2, top, side, side, "orange-soft", rx=2)
        svg.rect(x - side / 2, top, side, side, "line-orange", rx=2)
        svg.text(x, top + 56, name, "huge middle bold")
        svg.text(x, top + 80, size_in_words(large), "middle bold")
        svg.text(x, top + 97, f"{T:,} × {T:,}", "middle small")
    svg.text(84, top + 70, size_in_words(small), "end small muted")
    svg.text(84, top + 84, "each", "end small muted")
    thin, thick = "", "thick"
    for start, end, colour, more in (
        ((92, 194), (130, 250), "blue", thin), ((116, 194), (144, 250), "blue", thin),
        ((182, 250), (237, 180), "orange", thick), ((293, 178), (346, 248), "orange", thick),
        ((412, 250), (467, 180), "orange", thick), ((523, 178), (576, 248), "orange", thick),
        ((668, 194), (628, 250), "blue", thin), ((648, 250), (714, 196), "green", thin),
    ):  # fmt: skip
        svg.arrow(start, end, colour, more=more)
    for x, what, end in ((196, "out", "end"), (335, "back", ""), (426, "out", "end"), (565, "back", "")):
        svg.text(x, 222, what, f"{end} small orange bold")
    scale = 500 / moving
    for y, what, seconds, colour in ((330, "moving", moving, "orange"), (362, "computing", computing, "green")):
        svg.text(0, y + 15, what, "bold")
        svg.rect(84, y, scale * seconds, 22, colour, rx=3)
        words = size_in_words(cost.hbm_bytes) if what == "moving" else f"{cost.flops / 1e9:.2g} GFLOP"
        svg.text(84 + scale * seconds + 8, y + 15, [(seconds_in_words(seconds), f"bold {colour}"), f" · {words}"])
    return svg.picture()


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
    """A tensor that crosses: a block of memory (top), and a beam from it to the chip (bottom), or upwards."""
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


def size_in_words(count: float) -> str:
    """Bytes in binary units: "32 MiB"."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{number(count / (1 << power))} {unit}"
    return f"{count} bytes"
