"""What moving a cache costs: bytes of keys and values, what a network must carry, and when moving beats computing.

    cache_bytes(OPT_66B, tokens=512)                                    1,207,959,552, which are 1.125 GiB
    bits_per_second(OPT_66B, tokens=512, rate=10)                       96.6e9
    break_even_bandwidth(LLAMA_3_70B, prefix=8192, flops=8 * 312e12)    5.86e9 bytes a second

Where prefill and decode are done by different GPUs, the cache of every prompt travels from the one to the other. It
grows with what a model keeps of a token (`bytes_per_token`), and the network must carry it as often as requests come.

**When is moving a prefix faster than computing it?** p tokens are moved in bytes(p) / B seconds and computed in
flops(p) / G, where B is the bandwidth and G the rate at which products are done. So moving wins where

    B > G · bytes(p) / flops(p)                                                                                     (1)

For a model of L layers and width d, whose KV heads are 1/g of its heads, with elements of s bytes,

    bytes(p) = 2 · L · p · (d / g) · s                    a key and a value of each token, in every layer
    flops(p) = L · (a · p² · d + b · p · d²)              a: attention, for a query and a key; b: the matrices, a token

and L and one p cancel: B > 2 · G · d · s / (g · (a · p · d + b · d²)). That is equation 2 of Mooncake (Qin et al., FAST
2025, https://arxiv.org/abs/2407.00079), with a = 4 and b = 22. What it takes for granted: that GPUs compute at their
peak, so that the answer is an upper bound of what a network must do; that the heads are as wide together as the model;
that each query attends to every key (a causal prompt has half of these pairs, a = 2); and that latencies are nothing.
The longer the prefix, the less is asked, for attention grows with p².

22 is not quite Llama-3-70B's own b, which is 2 for a multiplication and an addition times the weights of a layer over
d²: 25.5. `break_even_of` has (1) with the operations of a named model instead, and causal attention: 5.5e9 there.
"""

import math

from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.operations import operations
from llmsys.models.shapes import ITEMSIZE, ModelShape

OPT_66B = ModelShape(
    name="OPT-66B",
    layers=64,
    width=9216,
    heads=72,
    kv_heads=72,
    head_dim=128,
    ffn=36_864,
    vocab=50_272,
    tied=True,
    gated=False,
    qkv_bias=True,
    source="OPT, table 1, https://arxiv.org/abs/2205.01068; without its learned positions and its other biases",
)
LLAMA_3_70B = ModelShape(
    name="Llama-3-70B",
    layers=80,
    width=8192,
    heads=64,
    kv_heads=8,
    head_dim=128,
    ffn=28_672,
    vocab=128_256,
    source="The Llama 3 herd of models, table 3, https://arxiv.org/abs/2407.21783",
)


def cache_bytes(shape: ModelShape, *, tokens: int, dtype: str = "bfloat16") -> int:
    """Bytes of the keys and values of so many tokens, in all layers.

    OPT-66B's 512 tokens are 1.125 GiB: the example of DistServe, section 3.3, https://arxiv.org/abs/2401.09670.

    Raises ValueError for tokens below 0, or a dtype that is not in `DTYPES`.
    """
    if tokens < 0:
        raise ValueError(f"tokens must be at least 0, got {tokens}")
    return tokens * bytes_per_token(shape, dtype)


def bits_per_second(
    shape: ModelShape, *, tokens: int | float, rate: int | float, dtype: str = "bfloat16"
) -> float:
    """What a network carries, in bits a second, where `rate` prompts a second of `tokens` each are moved.

    Networks are sold by the bit: 400 Gb/s are 50e9 bytes a second. ValueError where a number is below 0 or not finite.
    """
    for name, value in (("tokens", tokens), ("rate", rate)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return float(8 * tokens * bytes_per_token(shape, dtype) * rate)


def break_even_bandwidth(
    shape: ModelShape,
    *,
    prefix: int,
    flops: int | float,
    attention_flops: int | float = 4,
    matrix_flops: int | float = 22,
    dtype: str = "bfloat16",
) -> float:
    """Bytes a second above which a prefix is moved in less time than it is computed in: Mooncake's equation 2.

    Parameters
    ----------
    prefix
        p, tokens.
    flops
        G, operations a second of all GPUs that would compute it.
    attention_flops, matrix_flops
        a and b, the paper's.

    Raises ValueError for numbers that are not above 0, for latent attention, and for heads that are not as wide
    together as the model, which the equation has no words for: `break_even_of` has.
    """
    _check(prefix=prefix, flops=flops, attention_flops=attention_flops, matrix_flops=matrix_flops)
    d = shape.width
    if shape.latent is not None or shape.heads * shape.head_dim != d:
        raise ValueError(
            f"shape must have keys and values of its heads, which are together as wide as the model, and {shape.name} "
            "has not: ask break_even_of"
        )
    if dtype not in ITEMSIZE:
        raise ValueError(f"dtype must be one of {', '.join(ITEMSIZE)}, got {dtype!r}")
    moved = 2 * d * ITEMSIZE[dtype] * shape.kv_heads / shape.heads  # of a token and a layer
    computed = attention_flops * prefix * d + matrix_flops * d**2
    return flops * moved / computed


def break_even_of(shape: ModelShape, *, prefix: int, flops: int | float, dtype: str = "bfloat16") -> float:
    """The same by a model's own operations (`operations`), the head's left out: causal attention, every matrix.

    ValueError for numbers that are not above 0.
    """
    _check(prefix=prefix, flops=flops)
    step = operations(shape, batch=1, queries=prefix, context=prefix, dtype=dtype)
    computed = sum(op.count * op.flops for op in step if op.name != "head")
    return flops * cache_bytes(shape, tokens=prefix, dtype=dtype) / computed


def _check(**positive: int | float) -> None:
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
