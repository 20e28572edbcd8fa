"""One frame of the decode stepper: the roofline (left), the memory (right), the step's time in lanes, and its words.

All that is drawn is in the scene: only places are computed here.
"""

from dataclasses import dataclass

from llmsys.viz.kit.numbers import number, seconds_in_words, size_in_words
from llmsys.viz.kit.svg import Svg
from llmsys.viz.kv_cache.memory_map import Glasses, draw_memory, glasses
from llmsys.viz.kv_cache.step_cost import StepCost
from llmsys.viz.roofline.axes import Axes, Dot
from llmsys.viz.roofline.frame import tokens
from llmsys.viz.roofline.names import Names

PLOT = (48, 48, 404, 262)
"""Left, top, right and bottom of the roofline in the picture."""
MEMORY = {"x": 436, "y": 48, "width": 324, "height": 160}
LANES = (92, 698, 322)
"""Left and right of the lanes, and the top of the first."""
LANE = 20
COLOURS = {"products": "blue", "attention": "orange"}
WIDTH, HEIGHT = 760, 466


@dataclass(frozen=True)
class Scene:
    """A decode step: what it costs, and where its two parts stand on the roofline, now and with one sequence."""

    cost: StepCost
    axes: Axes
    dots: tuple[Dot, ...]
    names: tuple[Names, ...]
    start: tuple[Dot, ...]

    @property
    def device(self) -> str:
        """The device's name, with how many of them there are."""
        return named(self.cost.device.name, self.cost.cards)


def named(device: str, cards: int) -> str:
    """A device with how many of them there are: "8 × H100 SXM"."""
    return device if cards == 1 else f"{cards} × {device}"


def draw(scene: Scene) -> Svg:
    """One decode step as a picture."""
    svg = Svg(WIDTH, HEIGHT, alt="")
    cost = scene.cost
    svg.text(0, 14, [(f"{cost.shape.name}, decode: ", "bold"), (f"batch {cost.batch:,}", "bold orange"),
                     f", context {tokens(cost.context)}"])  # fmt: skip
    svg.text(WIDTH, 14, [(scene.device, "bold"), f" · {cost.dtype}"], "end")
    _roofline(svg, scene)
    _memory(svg, cost, glasses(cost, **MEMORY))
    _lanes(svg, cost)
    _words(svg, cost)
    return svg


def _roofline(svg: Svg, scene: Scene) -> None:
    scene.axes.draw(svg)
    for dot in scene.start:
        svg.circle(*dot.at, 3.5, "surface")
        svg.circle(*dot.at, 3.5, f"line-{COLOURS[dot.op.name]}")
    _start_name(svg, scene)
    for block in scene.names:
        if block.line:
            svg.line(*block.line, "line-muted thin")
    for dot in sorted(scene.dots, key=lambda dot: -dot.radius):
        svg.circle(*dot.at, dot.radius, f"{COLOURS[dot.op.name]} edged")
    for block in scene.names:
        for i, dot in enumerate(block.dots):
            svg.text(block.at[0], block.at[1] + 12 * i, dot.op.name, f"small bold {COLOURS[dot.op.name]}")


def _start_name(svg: Svg, scene: Scene) -> None:
    """Names the ring where the products of one sequence stood, once the dot has left it, and where there is room."""
    (x, y), now = scene.start[0].at, scene.dots[0]
    if now.at[0] - now.radius < x + 8:
        return
    taken = scene.axes.words()
    for block in scene.names:
        wide = max(7.3 * len(dot.op.name) for dot in block.dots)
        taken.append((block.at[0], block.at[1] - 12, block.at[0] + wide, block.at[1] + 12 * (len(block.dots) - 1) + 3))
    left, top, right, bottom = x + 4, y + 3, x + 54, y + 18
    if all(right < a or left > c or bottom < b or top > d for a, b, c, d in taken):
        svg.text(x + 6, y + 15, "batch 1", f"small {COLOURS[now.op.name]}")


def _memory(svg: Svg, cost: StepCost, box: Glasses) -> None:
    words = f"memory: {size_in_words(cost.memory)}"
    svg.text(box.x, box.y - 10, [(words, "bold"), f" · a column: {size_in_words(box.column)}"], "small")
    draw_memory(svg, cost, box)
    y = box.y + box.height + 17
    idle = cost.weights_held - cost.products.bytes
    weights = f"weights {size_in_words(cost.weights_held)}"
    if idle > 0.005 * cost.weights_held:
        weights += f", {size_in_words(cost.products.bytes)} read (pale: not read)"
    _key(svg, box.x, y, "blue", weights)
    each = size_in_words(cost.sequence_bytes)
    cache = f"cache {cost.batch:,} × {each} = {size_in_words(cost.cache)}" if cost.batch > 1 else f"cache {each}"
    _key(svg, box.x, y + 17, "orange", cache)
    if cost.needed <= cost.memory:
        _key(svg, box.x, y + 34, "panel", f"free {size_in_words(cost.memory - cost.needed)}")
    else:
        svg.line((box.x + 5, y + 23), (box.x + 5, y + 37), "line-purple thick")
        over = size_in_words(cost.needed - cost.memory)
        svg.text(box.x + 16, y + 34, f"the memory ends here: {over} too much", "small purple")


def _key(svg: Svg, x: float, y: float, colour: str, words: str) -> None:
    svg.rect(x, y - 9, 10, 10, colour, rx=1)
    if colour == "panel":
        svg.rect(x, y - 9, 10, 10, "line-rule", rx=1)
    svg.text(x + 16, y, words, "small")


def _lanes(svg: Svg, cost: StepCost) -> None:
    """What memory and arithmetic do during the step, from left to right."""
    left, right, top = LANES
    scale = (right - left) / cost.seconds
    svg.text(left, top - 8, "the step, from left to right", "small muted")
    svg.text(left - 8, top + 14, "memory", "end small bold")
    svg.text(left - 8, top + LANE + 19, "arithmetic", "end small bold")
    start = left
    for op, what, colour in ((cost.products, "weights", "blue"), (cost.attention, "cache", "orange")):
        width = scale * cost.seconds_of(op)
        for lane, seconds, hue in ((0, cost.reading(op), colour), (1, cost.computing(op), "green")):
            y, filled = top + lane * (LANE + 5), max(scale * seconds, 0.5)
            svg.rect(start, y, width, LANE, "panel", rx=0)
            svg.rect(start, y, filled, LANE, f"{hue} edged" if filled > 3 else hue, rx=0)
            short = (what, "products" if what == "weights" else "attention")[lane]
            full = f"{'' if lane else 'read '}{short}: {seconds_in_words(seconds)}"
            for words in (full, short):  # the longest that has a place
                room = 6.6 * len(words) + 12
                if filled > room:
                    svg.text(start + 6, y + 14, words, "small bold on")
                    break
                if width - filled > room:
                    svg.text(start + filled + 5, y + 14, words, "small")
                    break
        start += width
    svg.line((right, top - 4), (right, top + 2 * LANE + 9), "line-ink")
    svg.text(WIDTH, top + LANE + 7, seconds_in_words(cost.seconds), "end small bold")


def _words(svg: Svg, cost: StepCost) -> None:
    svg.rect(0, 384, WIDTH, 82, "panel", rx=6)
    each = seconds_in_words(cost.seconds / cost.batch)
    svg.text(14, 406, ["a step takes at least ", (seconds_in_words(cost.seconds), "bold"),
                       f", which is {each} for each token" if cost.batch > 1 else "",
                       (f" · {cost.batch / cost.seconds:,.0f} tokens/s", "bold")])  # fmt: skip
    head, tail, colour = limit(cost)
    svg.text(14, 429, [(head, f"bold {colour}"), f" {tail}"])
    svg.text(14, 452, largest(cost), "purple" if cost.needed > cost.memory else "")


def limit(cost: StepCost) -> tuple[str, str, str]:
    """What takes most of the step, what follows from that, and the colour of the part."""
    products, attention = cost.seconds_of(cost.products), cost.seconds_of(cost.attention)
    if attention > products:
        each = seconds_in_words(attention / cost.batch)
        if cost.computing(cost.attention) > cost.reading(cost.attention):
            return "Attention's arithmetic limits:", f"every sequence adds {each}.", "orange"
        return "Reading the cache limits:", f"every sequence adds {each}, which it shares with no other.", "orange"
    if cost.computing(cost.products) > cost.reading(cost.products):
        return "Arithmetic limits:", "the products are past the ridge; more sequences take more time.", "green"
    share = cost.computing(cost.products) / cost.reading(cost.products)
    more = "A larger batch reads more experts." if cost.shape.experts else "All sequences share the reading."
    return "Reading the weights limits:", f"the arithmetic takes {number(100 * share, 2)}% of that time. {more}", "blue"


def largest(cost: StepCost) -> str:
    """The largest batch that fits into the memory, in words."""
    memory = size_in_words(cost.memory)
    if cost.weights_held > cost.memory:
        cards = -(-cost.weights_held // cost.device.memory_bytes)
        return f"The weights alone do not fit into {memory}, that takes {cards} such devices. Times are as if they did."
    most = cost.largest_batch
    if not most:
        return f"Not one sequence of this context fits beside the weights into {memory}. Times are as if it did."
    tail = "" if cost.batch <= most else "; this batch does not, times are as if it did"
    many = f"{most:,} sequences" if most > 1 else "one sequence"
    return f"At most {many} of {tokens(cost.context)} tokens fit into {memory}{tail}."
