"""The opening picture of lesson 01: where naive attention's matrices live, and how long the chip waits for them.

Sizes are drawn to scale, and are those of the library's own `naive_cost`.
"""

from llmsys.attention.cost import naive_cost
from llmsys.hardware.devices import DEVICES
from llmsys.viz.kit.numbers import number, rate, seconds_in_words, size_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


def overview() -> Picture:
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
    svg.text(14, 300, [("the chip", "bold"), f" · {device.sms} × {device.sram_bytes_per_sm >> 10} KiB of SRAM, "
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
