"""The roofline explorer: the operations of a real model's step on a real device, while its batch grows.

A frame is a step of the model with another batch, or another context. Its operations are those of
`llmsys.models.operations`, its times those of `llmsys.hardware.roofline`: bounds from below, as if one device had all
the memory that the model needs. How much that is, the frame says.
"""

from llmsys.hardware.devices import DEVICES, DeviceSpec
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.operations import operations
from llmsys.models.shapes import ITEMSIZE, SHAPES, ModelShape
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.numbers import seconds_in_words
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.roofline.axes import Axes, model_dtype
from llmsys.viz.roofline.frame import PLOT, Scene, draw
from llmsys.viz.roofline.names import place

BATCHES = tuple(2**p for p in range(11))
CONTEXTS = tuple(1024 * 2**p for p in range(8))
SWEEPS = {
    "batch 1 to 1024, context 1k": "batch 1024",
    "batch 1 to 1024, context 8k": "batch 8192",
    "batch 1 to 1024, context 64k": "batch 65536",
    "context 1k to 128k, batch 1": "context 1",
    "context 1k to 128k, batch 64": "context 64",
}
PHASES = {"decode: one token a sequence": "decode", "prefill: the whole context": "prefill"}
ATTENTION = {"flash": "flash", "naive": "naive"}


def explorer(device: str | DeviceSpec = "H100 SXM", model: str | ModelShape = "Llama-3-8B") -> Stepper:
    """Step through growing batches or contexts, and watch the operations of a model move on the roofline of a device.

    device    a name in `llmsys.hardware.devices.DEVICES`, or a device of your own, such as `this_machine()`
    model     a name in `llmsys.models.shapes.SHAPES`, or a shape of your own

    Raises ValueError for a name that is not there.
    """
    devices, shapes = dict(DEVICES), dict(SHAPES)
    if isinstance(device, DeviceSpec):
        devices = {device.name: device} | devices
        device = device.name
    if isinstance(model, ModelShape):
        shapes = {model.name: model} | shapes
        model = model.name

    def frames(model: str, device: str, phase: str, attention: str, sweep: str) -> list[Scene]:
        return scenes(shapes[model], devices[device], phase=phase, attention=attention, sweep=sweep)

    return Stepper(
        frames,
        draw,
        title="A model's step on the roofline",
        describe=describe,
        controls=[
            Choice("model", "Model", {name: name for name in shapes}, start=model),
            Choice("device", "Device", {name: name for name in devices}, start=device),
            Choice("phase", "Phase", PHASES),
            Choice("attention", "Attention", ATTENTION),
            Choice("sweep", "Steps", SWEEPS),
        ],
        static=most_telling,
        keep_place=True,
    )


def scenes(shape: ModelShape, device: DeviceSpec, *, phase: str, attention: str, sweep: str) -> list[Scene]:
    """The frames for one choice of all controls: the step with each batch, or each context, of the sweep."""
    growing, fixed = sweep.split()
    dtype = model_dtype(device)
    axes = Axes(device, dtype, *PLOT)
    found: list[Scene] = []
    before: dict[tuple[str, ...], tuple[float, float]] = {}
    for value in BATCHES if growing == "batch" else CONTEXTS:
        batch, context = (value, int(fixed)) if growing == "batch" else (int(fixed), value)
        queries = 1 if phase == "decode" else context
        step = operations(shape, batch=batch, queries=queries, context=context, attention=attention, dtype=dtype)
        dots = tuple(axes.dots(step))
        names = place(axes, dots, before)
        before |= {block.key: block.offset for block in names}
        memory = weight_bytes(shape, dtype) + batch * context * cache_bytes(shape, dtype)
        start = found[0].dots if found else dots
        found.append(Scene(shape, device, phase, batch, context, axes, dots, names, start, growing, memory))
    return found


def weight_bytes(shape: ModelShape, dtype: str = "bfloat16") -> float:
    """Bytes of all weights."""
    return float(shape.parameters * ITEMSIZE[dtype])


def cache_bytes(shape: ModelShape, dtype: str = "bfloat16") -> int:
    """Bytes that the cache of one token takes in all layers: keys and values, or the latent and the shared key."""
    return bytes_per_token(shape, dtype)


def most_telling(frames: list[Scene]) -> int:
    """The frame that stands for all: the last that fits into memory and waits for memory and for arithmetic.

    If there is none, it is the last that fits.
    """
    fits = [i for i, scene in enumerate(frames) if scene.memory <= scene.device.memory_bytes] or range(len(frames))
    mixed = [i for i in fits if 0.1 < frames[i].waiting.get("compute", 0) < 0.9]
    return max(mixed or fits)


def describe(scene: Scene) -> str:
    """The caption of a frame: the step, its least time, what it waits for, and its longest operation."""
    longest = max(scene.dots, key=lambda dot: dot.share)
    what = "decodes a token of each of" if scene.phase == "decode" else "prefills"
    many = f"{scene.batch:,} sequences" if scene.batch > 1 else "one sequence"
    if scene.phase == "decode" and scene.batch == 1:
        what = "decodes a token of"
    busy = [dot.op.name for dot in scene.dots if dot.bound != "HBM"]
    if not busy:
        waits = "It waits for memory all the time"
    elif len(busy) == len(scene.dots):
        waits = "It never waits for memory"
    else:
        share = 100 * scene.waiting["HBM"]
        waits = f"It waits for memory {share:.0f}% of the time, but not in: {'; '.join(busy)}"
    return (
        f"{scene.shape.name} {what} {many} of {scene.context:,} tokens on {scene.device.name}: at least "
        f"{seconds_in_words(scene.seconds)}, {scene.tokens / scene.seconds:,.0f} tokens/s. "
        f"{waits}. The longest is {longest.op.name}, {100 * longest.share:.0f}% of the time."
    )
