"""The stepper of lesson 07: a decode step on the roofline and in memory, as its batch and its context grow.

A frame is a step with another batch; the context is a slider of its own. What a step reads and computes comes from the
library's costs (`step_cost`), and so do all sizes and times: bounds from below.
"""

from dataclasses import replace

from llmsys.hardware.devices import DEVICES, DeviceSpec
from llmsys.models.shapes import SHAPES, ModelShape
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.numbers import number, seconds_in_words, size_in_words
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kv_cache.step_cost import StepCost
from llmsys.viz.kv_cache.step_frame import PLOT, Scene, draw, largest, limit, named
from llmsys.viz.roofline.axes import Axes, model_dtype
from llmsys.viz.roofline.names import place

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CONTEXTS = {f"{1 << (p - 10)}k" if p >= 10 else str(1 << p): 1 << p for p in range(8, 18)}
MODELS = ("SmolLM2-135M", "Llama-3-8B", "Qwen2.5-72B", "DeepSeek-V3")
H100 = "H100 SXM"
CARDS = (1, 2, 8, 16)


def stepper(
    model: str | ModelShape = "Llama-3-8B", device: str | DeviceSpec = H100, *, context: int = 8192
) -> Stepper:
    """Step through growing batches of a decode step: where its products and attention stand on the roofline, what it
    reads of the memory, and how long it takes.

    model      a name in `SHAPES`, or a shape of your own
    device     a name in `DEVICES`, one of "2 × H100 SXM", "8 × H100 SXM", "16 × H100 SXM", or a device of your own,
               such as `this_machine()`
    context    tokens of each sequence at first: a power of two from 256 to 131,072

    Raises ValueError for a model, a device or a context that is not there.
    """
    shapes = {name: SHAPES[name] for name in MODELS }
    devices = {named(H100, cards): (DEVICES[H100], cards) for cards in CARDS}
    if isinstance(model, ModelShape):
        shapes = {model.name: model} | shapes
        model = model.name
    elif model in SHAPES:
        shapes.setdefault(model, SHAPES[model])
    if isinstance(device, DeviceSpec):
        devices = {device.name: (device, 1)} | devices
        device = device.name
    elif device in DEVICES:
        devices.setdefault(device, (DEVICES[device], 1))

    def frames(model: str, device: str, context: int) -> list[Scene]:
        return scenes(shapes[model], *devices[device], context=context)

    return Stepper(
        frames,
        draw,
        title="A decode step, as its batch grows",
        describe=describe,
        controls=[
            Choice("model", "Model", {name: name for name in shapes}, start=model),
            Choice("device", "Device", {name: name for name in devices}, start=device),
            Choice("context", "Context", CONTEXTS, start=context, slider=True),
        ],
        static=most_telling,
        interval=600,
        keep_place=True,
    )


def scenes(shape: ModelShape, device: DeviceSpec, cards: int = 1, *, context: int) -> list[Scene]:
    """The frames for one choice of all controls: a step with each batch."""
    dtype = model_dtype(device)
    axes = Axes(replace(device, flops={dtype: device.flops[dtype]}), dtype, *PLOT)  # one roof is enough
    found: list[Scene] = []
    before: dict[tuple[str, ...], tuple[float, float]] = {}
    for batch in BATCHES:
        cost = StepCost(shape, device, cards, batch, context)
        dots = tuple(axes.dots((cost.products, cost.attention), area=700))
        names = place(axes, dots, before)
        before |= {block.key: block.offset for block in names}
        found.append(Scene(cost, axes, dots, names, found[0].dots if found else dots))
    return found


def most_telling(frames: list[Scene]) -> int:
    """The frame that stands for all: the last whose batch fits into the memory."""
    return max((i for i, scene in enumerate(frames) if scene.cost.needed <= scene.cost.memory), default=0)


def describe(scene: Scene) -> str:
    """The caption of a frame: the step, what it reads, its least time, what limits it, and what fits."""
    cost = scene.cost
    many = f"{cost.batch:,} sequences" if cost.batch > 1 else "one sequence"
    weights, cache = (
        f"{size_in_words(dot.op.bytes)} of {what} ({number(dot.op.intensity)} FLOP a byte)"
        for dot, what in zip(scene.dots, ("weights", "cache"), strict=True)
    )
    shared = "" if cost.cards == 1 else " (communication not counted)"
    return (
        f"{cost.shape.name} decodes a token of {many} of {cost.context:,} tokens on {scene.device}{shared}. It "
        f"reads {weights} and {cache}, and takes at least {seconds_in_words(cost.seconds)}, "
        f"{seconds_in_words(cost.seconds / cost.batch)} a token. {' '.join(limit(cost)[:2])} {largest(cost)}"
    )
