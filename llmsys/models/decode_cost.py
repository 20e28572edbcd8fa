"""What decoding costs: the bytes that a token leaves in the cache, the batch that fits, the time of a step.

    bytes_per_token(SHAPES["Llama-3-8B"])                                               131,072
    largest_batch(80e9, weight_bytes=16e9, bytes_per_token=131_072, context=8192)       59
    decode_step_of(SHAPES["Llama-3-8B"], DEVICES["H100 SXM"], batch=1, context=8192).seconds

A decode step gives each of B sequences one token, and reads from memory

    every weight, once for all of them                            weight bytes
    every key and value of each sequence, for it alone            B · context · bytes per token

Reading a weight is worth more the larger the batch: it serves B tokens, until their arithmetic takes longer than the
reading. The cache is never shared, so a larger batch does not help it. An element of a key or a value takes part in one
multiply-add of each query head that reads it: four heads do in Llama 3, which makes 4 operations a byte in bf16, and an
H100 does 295 in that time. So the cache's part is bound by memory for any batch, and

    seconds = cache bytes / bandwidth + max(weight bytes / bandwidth, 2 · parameters · B / peak)

(Pope et al., https://arxiv.org/abs/2211.05102; https://jax-ml.github.io/scaling-book/inference). The exception to
watch is absorbed latent attention: all 128 heads of DeepSeek-V3 read the same latent, which makes 242.

What is left out is small or avoidable: activations, launches, the exchange between devices. `llmsys.models.operations`
has the same step in more parts, `llmsys bench decode` has it measured.
"""

import math
from dataclasses import dataclass, replace

import torch

from llmsys.cache.spec import CacheSpec, LayerCache
from llmsys.hardware.devices import DeviceSpec
from llmsys.models.operations import operations
from llmsys.models.shapes import DTYPES, ModelShape


def cache_spec_of(shape: ModelShape, dtype: str | torch.dtype = "bfloat16") -> CacheSpec:
    """What each layer of a model keeps of a token: a key and a value of each KV head; or with latent attention one
    vector that is both, with one rotated key behind it.

    It is what `model.cache_spec()` is of a model that is there. Raises ValueError for a dtype that is not in `DTYPES`.
    """
    if not isinstance(dtype, torch.dtype):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or torch's own, got {dtype!r}")
        dtype = DTYPES[dtype]
    if (latent := shape.latent) is None:
        keeps = {"heads": shape.kv_heads, "Dk": shape.head_dim, "Dv": shape.head_dim}
    else:
        rank = latent.kv_rank
        keeps = {"heads": 1, "Dk": rank + latent.rope_dim, "Dv": rank, "values_in_keys": True}
    return CacheSpec(tuple(LayerCache(layer, dtype=dtype, **keeps) for layer in range(shape.layers)))


def bytes_per_token(shape: ModelShape, dtype: str | torch.dtype = "bfloat16") -> int:
    """Bytes that one token of one sequence takes in the cache, in all layers together."""
    return cache_spec_of(shape, dtype).bytes_per_token


def with_kv_heads(shape: ModelShape, kv_heads: int) -> ModelShape:
    """The same model with so many KV heads: as many as query heads is multi-head attention (MHA), one is multi-query
    (MQA), what lies between is grouped-query attention (GQA).

    Of latent attention (MLA) it makes one that keeps keys and values of head_dim elements. Raises ValueError where
    the query heads cannot be shared out evenly.
    """
    if kv_heads < 1 or shape.heads % kv_heads:
        raise ValueError(f"kv_heads must divide the {shape.heads} query heads of {shape.name}, got {kv_heads}")
    return replace(shape, name=f"{shape.name} with {kv_heads} KV heads", kv_heads=kv_heads, latent=None)


def largest_batch(memory: int | float, *, weight_bytes: int | float, bytes_per_token: int | float, context: int) -> int:
    """How many sequences of `context` tokens fit beside the weights into `memory` bytes: 0 where not even one does.

    Raises ValueError for numbers that are negative, and for a token or a context of nothing.
    """
    _check(at_least_zero={"memory": memory, "weight_bytes": weight_bytes},
           positive={"bytes_per_token": bytes_per_token, "context": context})  # fmt: skip
    return max(0, int((memory - weight_bytes) // (context * bytes_per_token)))


@dataclass(frozen=True)
class DecodeStep:
    """The least time of a decode step, in its parts, in seconds."""

    cache_seconds: float
    """To read the keys and values of every sequence."""
    weight_seconds: float
    """To read the weights."""
    arithmetic_seconds: float
    """To multiply each token with the weights, while they are being read."""

    @property
    def seconds(self) -> float:
        return self.cache_seconds + max(self.weight_seconds, self.arithmetic_seconds)

    @property
    def waits_for(self) -> str:
        """What takes longest: "cache", "weights" or "arithmetic"."""
        return max(
            (self.cache_seconds, "cache"), (self.weight_seconds, "weights"), (self.arithmetic_seconds, "arithmetic")
        )[1]


def decode_step(
    *,
    batch: int,
    context: int,
    parameters: int | float,
    weight_bytes: int | float,
    bytes_per_token: int | float,
    bandwidth: int | float,
    peak_flops: int | float,
    devices: int = 1,
) -> DecodeStep:
    """The least time of a step in which each of `batch` sequences of `context` tokens gets one more.

    Parameters
    ----------
    context
        Tokens that a sequence has then, all of which are attended to.
    parameters
        By which each token is multiplied: in a mixture of experts, those of its own experts.
    weight_bytes
        That are read: in a mixture of experts, those of the experts that some token chose.
    bytes_per_token
        Of the cache, in all layers.
    bandwidth, peak_flops
        Of one device, B/s, and FLOP/s of the type in which the products are computed, not the one in which the
        weights are stored.
    devices
        Over which weights and caches are divided evenly. What they exchange is not counted.

    Raises
    ------
    ValueError
        A number is not positive and finite (weights and cache may be of no bytes). Names it.
    """
    _check(
        at_least_zero={"parameters": parameters, "weight_bytes": weight_bytes, "bytes_per_token": bytes_per_token},
        positive={
            "batch": batch, "context": context, "bandwidth": bandwidth, "peak_flops": peak_flops, "devices": devices,
        },
    )  # fmt: skip
    return DecodeStep(
        cache_seconds=batch * context * bytes_per_token / (devices * bandwidth),
        weight_seconds=weight_bytes / (devices * bandwidth),
        arithmetic_seconds=2 * parameters * batch / (devices * peak_flops),
    )


def decode_step_seconds(
    *,
    batch: int,
    context: int,
    parameters: int | float,
    weight_bytes: int | float,
    bytes_per_token: int | float,
    bandwidth: int | float,
    peak_flops: int | float,
    devices: int = 1,
) -> float:
    """`decode_step(…).seconds`: the cache's part, plus the greater of the weights' bytes and of their arithmetic.

    Arguments and errors are `decode_step`'s.
    """
    return decode_step(
        batch=batch, context=context, parameters=parameters, weight_bytes=weight_bytes,
        bytes_per_token=bytes_per_token, bandwidth=bandwidth, peak_flops=peak_flops, devices=devices,
    ).seconds  # fmt: skip


def decode_step_of(
    shape: ModelShape, device: DeviceSpec, *, batch: int, context: int, dtype: str = "bfloat16", devices: int = 1
) -> DecodeStep:
    """`decode_step` of a named model on a named device, weights, cache and products all of `dtype`.

    Raises ValueError where the device has no figure for the dtype, and as `decode_step` does.
    """
    peak_flops = device.flops_per_byte(dtype) * device.bandwidth
    weight_bytes, parameters = weights_of_step(shape, batch=batch, dtype=dtype)
    return decode_step(
        batch=batch, context=context, parameters=parameters, weight_bytes=weight_bytes,
        bytes_per_token=bytes_per_token(shape, dtype), bandwidth=device.bandwidth, peak_flops=peak_flops,
        devices=devices,
    )  # fmt: skip


def weights_of_step(shape: ModelShape, *, batch: int, dtype: str = "bfloat16") -> tuple[float, float]:
    """The bytes of weights that a decode step reads, and how many of them each of its tokens is multiplied by.

    That is less than all: of an embedding that is not the head, too, only the tokens' rows are read, and of a mixture
    of experts those that some token chose (the expectation for tokens that choose evenly).
    """
    step = operations(shape, batch=batch, queries=1, context=1, dtype=dtype)
    products = [op for op in step if op.weight_bytes and op.name != "norm, residual"]
    used = sum(op.count * op.flops for op in products) / (2 * batch)
    return float(sum(op.count * op.weight_bytes for op in step)), used


def _check(*, at_least_zero: dict[str, int | float], positive: dict[str, int | float]) -> None:
    for name, value in at_least_zero.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
