"""One frame of the stepper: the products so far (left), the roofline (right), what a token leaves in the cache (below).

All that is drawn is in the frame: only places are computed here.
"""

from dataclasses import dataclass
from functools import cached_property

from llmsys.hardware.devices import DeviceSpec
from llmsys.hardware.roofline import Operation, total_seconds
from llmsys.viz.kit.numbers import number, seconds_in_words, size_in_words
from llmsys.viz.kit.svg import Svg
from llmsys.viz.multi_head_latent_attention.products import KEPT, NAIVE, Design, Product, operations
from llmsys.viz.roofline.axes import Axes
from llmsys.viz.roofline.frame import tokens
from llmsys.viz.roofline.names import draw_dots, place

WIDTH, HEIGHT = 760, 440
PLOT = (446, 48, 742, 274)
"""Left, top, right and bottom of the roofline."""
ROW, TOP = 58, 34
COLOURS = {"cache": "orange", "weights": "blue", "latents": "orange", "made": "purple", "nothing new": "muted"}
WORDS = {
    "cache": "from the cache", "weights": "of weights", "latents": "of latents and matrices",
    "made": "that were made", "nothing new": "nothing more to read",
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """The product number `now` is computed; those before it are done."""

    design: Design
    products: tuple[Product, ...]
    now: int
    device: DeviceSpec
    batch: int
    context: int
    queries: int

    @property
    def done(self) -> list[Product]:
        return list(self.products[: self.now + 1])

    @cached_property
    def operations(self) -> list[Operation]:
        return operations(self.done)

    @property
    def flops(self) -> int:
        return sum(each.flops for each in self.done)

    @property
    def bytes(self) -> int:
        return sum(each.read + each.written for each in self.done)

    @property
    def attention(self) -> Operation | None:
        """Scores and sum, as far as they are there."""
        return next((each for each in self.operations if each.name == "attention"), None)

    @property
    def seconds(self) -> float:
        """The least time of what is done, on the device."""
        return total_seconds(self.operations, self.device)


def draw(frame: Frame) -> Svg:
    svg = Svg(WIDTH, HEIGHT, alt=describe(frame))
    head = f"batch {frame.batch}, context {tokens(frame.context)}, {_new(frame.queries)}"
    svg.text(0, 14, [(f"{frame.design.name}: ", "bold"), (head, "orange bold")])
    svg.text(WIDTH, 14, [(frame.device.name, "bold"), " · bfloat16"], "end")
    for n, product in enumerate(frame.products):
        _product(svg, frame, n, product)
    axes = Axes(frame.device, "bfloat16", *PLOT)
    axes.draw(svg)
    dots = axes.dots(frame.operations, area=700)
    draw_dots(svg, dots, place(axes, dots))
    _cache(svg, frame)
    return svg


def _product(svg: Svg, frame: Frame, n: int, product: Product) -> None:
    y, here = TOP + ROW * n, n == frame.now
    if here:
        svg.rect(0, y, 398, ROW - 6, "panel", rx=5)
    quiet = "muted" if n > frame.now else ""
    name, rest = product.name.split(":  ")
    svg.text(8, y + 17, [(f"{n + 1}  {name}", f"bold {quiet}"), ("   " + rest, f"mono small {quiet}")])
    rows, inner, columns = product.shape
    count = f"{product.count:,} × " if product.count > 1 else ""
    svg.text(390, y + 17, f"{count}({rows:,} × {inner:,}) · ({inner:,} × {columns:,})", "end small muted")
    if n > frame.now:
        return
    colour = COLOURS[product.of]
    read = f"{size_in_words(product.read)} {WORDS[product.of]}" if product.read else WORDS[product.of]
    parts = [f"{_flops(product.flops)}   ", (read, f"bold {colour}")]
    if product.written:
        parts.append((f"   {size_in_words(product.written)} written", "bold purple"))
    svg.text(26, y + 38, parts, "small")


def _cache(svg: Svg, frame: Frame) -> None:
    """What a layer keeps of a token, to scale, beside keys and values of all heads; and the sums."""
    d, y = frame.design, 340
    svg.text(0, y - 8, [("kept of a token, in a layer: ", "bold"), f"{d.numbers:,} numbers"], "small")
    if d.numbers < d.expanded:
        words = f"keys and values of all {d.heads} heads: {d.expanded:,}" + (", made in each step" * (d.way == NAIVE))
        svg.text(WIDTH, y - 8, words, "end small muted")
    svg.rect(0, y, WIDTH, 18, "purple-soft" if d.way == NAIVE else "panel", rx=2)
    svg.rect(0, y, max(WIDTH * d.numbers / d.expanded, 2), 18, "orange", rx=0)
    cache = frame.batch * frame.context * d.bytes_per_token
    svg.text(0, y + 40, [
        "cache: ", (f"{d.bytes_per_token:,} bytes a token", "bold"), f" in {d.layers} layers, for the batch ",
        (size_in_words(cache), "bold"), f" of {size_in_words(frame.device.memory_bytes)}",
    ])  # fmt: skip
    svg.text(0, y + 62, [
        "so far: ", (_flops(frame.flops), "bold"), " and ", (size_in_words(frame.bytes), "bold"),
        " of traffic, at the least ", (seconds_in_words(frame.seconds), "bold"), " for this layer",
    ])  # fmt: skip
    if (attention := frame.attention) is not None:
        ridge = frame.device.flops_per_byte("bfloat16")
        svg.text(0, y + 84, [
            "attention itself: ", (f"{number(attention.intensity)} FLOP a byte", "bold green"),
            f"; the data sheet's ridge is at {number(ridge)}",
        ])  # fmt: skip


def describe(frame: Frame) -> str:
    product, d, B = frame.products[frame.now], frame.design, frame.batch
    said = (
        f"{d.name}, {B} sequence{'s' * (B > 1)} of {frame.context:,} tokens, {_new(frame.queries)}. Product "
        f"{frame.now + 1} of {len(frame.products)}, {product.name}: {_flops(product.flops)}, "
        f"{size_in_words(product.read)} read"
    )
    said += f", {size_in_words(product.written)} written. " if product.written else ". "
    kept = "keys and values" if d.way == KEPT else "latents"
    said += f"The cache has {kept}, {d.bytes_per_token:,} bytes a token. "
    if (attention := frame.attention) is not None:
        said += f"Attention so far has {number(attention.intensity)} FLOP a byte. "
    return said + f"At the least {seconds_in_words(frame.seconds)} on {frame.device.name}."


def _new(queries: int) -> str:
    return f"{queries} new token{'s' * (queries > 1)}"


def _flops(flops: float) -> str:
    size, prefix = next((size, prefix) for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if flops >= size or
                        prefix == "M")  # fmt: skip
    return f"{number(flops / size)} {prefix}FLOP"
