"""Engines that nobody has measured, by a model from one that was: on several GPUs, or with another model's sizes.

    engine_of(MISTRAL_7B, 2, times=recorded_times(), num_blocks=55_680, device=DEVICES["H200"])
    rescaled(recorded_times(), MISTRAL_7B, SHAPES["Llama-3-8B"], DEVICES["H200"])

**What is modelled is not measured**: it says which design is worth trying, and not what it will reach.

**Tensor parallelism** over p GPUs (Megatron-LM, https://arxiv.org/abs/1909.08053: two all-reduces a layer). Of a step's
prices (`step_times`) all that is arithmetic, or reading of weights and caches, is divided by p. What is left is paid by
each: the launches. And what was not there before is the all-reduces, of C numbers a token:

    fixed       =  launches + weights / p + 2 L · latency
    per token   =  what it was / p + 2 L · 2 (p − 1) / p · 2 C bytes / bandwidth
    the others  =  what they were / p

where weights = their bytes / the memory's bandwidth, and launches = what was measured as fixed, less that; L layers of
width C; 2 (p − 1) / p is what a ring sends of each byte. Nothing of it is hidden behind computing here. One latency
is an assumption: `LATENCY`. The cache has the memory of p GPUs, less one copy of the weights.

**Another model** of the same kind on the same device: each price in proportion to what it is for. Per token, the
weights of the layers; per sequence, those of the head; per token attended to, the cache's bytes; per pair, the width of
all heads together; launches, the number of layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmsys.hardware.devices import DeviceSpec
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.sampling import whole_number
from llmsys.models.shapes import ModelShape
from llmsys.serving.simulator.step_times import Prices, StepTimes

LATENCY = 10e-6
"""Seconds of an all-reduce of next to nothing among GPUs of one host: an assumption, of the size that NCCL's are."""
BYTES = 2  #  of a number, in bf16


@dataclass(frozen=True)
class EngineOf:
    """What the simulator must know of an engine."""

    gpus: int
    times: StepTimes
    num_blocks: int
    modelled: bool
    """Whether somebody has run it, or it follows from one that was."""


def engine_of(
    shape: ModelShape,
    gpus: int,
    *,
    times: StepTimes,
    num_blocks: int,
    device: DeviceSpec,
    block_size: int = 16,
    latency: float = LATENCY,
    measured: bool = True,
) -> EngineOf:
    """An engine with tensor parallelism over so many GPUs, from one that has one GPU.

    Parameters
    ----------
    times, num_blocks, block_size
        Of the engine on one GPU. Blocks may be none, or fewer than none: so much memory is lacking for the weights.
    device
        Each of the GPUs.
    latency
        Seconds of an all-reduce, beside what its bytes take.
    measured
        Whether `times` are, of this model.

    ValueError where the model's heads cannot be divided so, or not even several GPUs have room for it.
    """
    whole_number("gpus", gpus, at_least=1)
    if shape.heads % gpus or shape.kv_heads % gpus:
        raise ValueError(
            f"gpus must divide the {shape.heads} query heads and {shape.kv_heads} KV heads of {shape.name}, got {gpus}"
        )
    if gpus > 1 and not device.interconnect:
        raise ValueError(f"device must have an interconnect, for GPUs that share a model, and {device.name} has none")
    of_block = bytes_per_token(shape) * block_size
    spare = num_blocks + (gpus - 1) * (num_blocks + weight_bytes(shape) // of_block)
    if spare < 2:
        raise ValueError(f"gpus must be more for {shape.name}: {gpus} of {device.name} have no room for its cache")
    if gpus == 1:
        return EngineOf(1, times, num_blocks, modelled=not measured)
    reduces = 2 * shape.layers
    per_token = reduces * 2 * (gpus - 1) / gpus * BYTES * shape.width / (device.interconnect / 2)

    def divided(prices: Prices) -> Prices:
        weights, launches = _parts(prices, shape, device)
        return Prices(
            fixed=launches + weights / gpus + reduces * latency,
            per_token=prices.per_token / gpus + per_token,
            per_sequence=prices.per_sequence / gpus,
            per_attended=prices.per_attended / gpus,
            per_pair=prices.per_pair / gpus,
        )

    return EngineOf(gpus, _each(times, divided), spare, modelled=True)


def rescaled(times: StepTimes, measured: ModelShape, wanted: ModelShape, device: DeviceSpec) -> StepTimes:
    """Step times of another model on the device on which `measured` was. ValueError for one of another kind: with
    experts, or latent attention."""
    for shape in (measured, wanted):
        if shape.experts or shape.latent:
            raise ValueError(
                f"{shape.name} has experts, or latent attention: from a dense model's steps nothing follows for its"
            )

    def ratio(what) -> float:
        return what(wanted) / what(measured)

    def scaled(prices: Prices) -> Prices:
        weights, launches = _parts(prices, measured, device)
        return Prices(
            fixed=weights * ratio(weight_bytes) + launches * ratio(lambda shape: shape.layers),
            per_token=prices.per_token * ratio(_layers_weights),
            per_sequence=prices.per_sequence * ratio(lambda shape: shape.vocab * shape.width),
            per_attended=prices.per_attended * ratio(bytes_per_token),
            per_pair=prices.per_pair * ratio(lambda shape: shape.layers * shape.heads * shape.head_dim),
        )

    return _each(times, scaled)


def blocks_left(num_blocks: int, measured: ModelShape, wanted: ModelShape, *, block_size: int = 16) -> int:
    """Blocks of the same size in tokens for another model, in the memory that `measured` and its cache had. Below 1
    where it does not fit."""
    memory = weight_bytes(measured) + num_blocks * block_size * bytes_per_token(measured)
    return math.floor((memory - weight_bytes(wanted)) / (block_size * bytes_per_token(wanted)))


def weight_bytes(shape: ModelShape) -> int:
    """In bf16."""
    return BYTES * shape.parameters


def _layers_weights(shape: ModelShape) -> int:
    return shape.parameters - shape.vocab * shape.width * (1 if shape.tied else 2)


def _each(times: StepTimes, change: Callable[[Prices], Prices]) -> StepTimes:
    """The prices of each kind of step, changed."""
    kinds = {name: getattr(times, name) for name in ("decode", "mixed", "short")}
    return replace(times, **{name: change(prices) for name, prices in kinds.items() if prices is not None})


def _parts(prices: Prices, shape: ModelShape, device: DeviceSpec) -> tuple[float, float]:
    """Of what every step costs: to read the weights, and the rest."""
    weights = min(weight_bytes(shape) / device.bandwidth, prices.fixed)
    return weights, prices.fixed - weights
