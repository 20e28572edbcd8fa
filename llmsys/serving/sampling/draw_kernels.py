"""The two kernels that draw a token from each row of logits.

A row has up to 150,000 logits, and a step may have one row: so a row is cut into parts, and each part is a program's.
What a later reader of the parts needs to know of one are three numbers, as in online softmax:

    most    m = max xᵢ                              +∞ where one is NaN: then the row has no token
    first   the smallest i whose xᵢ is m
    weight  Σ exp((xᵢ − m) / temperature), in fp64

The second kernel has a program for each row. The largest `most` and its `first` are the greedy token. For a drawn one
the weights are brought to the row's maximum, and cumulated they say in which part u · total lies; this part alone is
read again, and cumulated likewise.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["parts"])
def parts_kernel(
    logits_ptr, temperature_ptr, most_ptr, first_ptr, weight_ptr, row_stride, V, parts, PART: tl.constexpr
):  # fmt: skip
    """The three numbers of part program_id(0) % parts of row program_id(0) // parts.

    Grid: (N · parts,). logits (N, V), the V adjacent; temperature (N,); results (N, parts): fp32, int32, fp64. A part
    is PART logits, a power of two. `weight` is written where the temperature is above 0.
    """
    row = tl.program_id(0) // parts
    i = tl.program_id(0) % parts * PART + tl.arange(0, PART)
    x = tl.load(logits_ptr + row.to(tl.int64) * row_stride + i, mask=i < V, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperature_ptr + row)
    nan = tl.max((x != x).to(tl.int32), axis=0) > 0
    m = tl.max(x, axis=0)
    at = tl.program_id(0)
    tl.store(most_ptr + at, tl.where(nan, float("inf"), m))
    tl.store(first_ptr + at, tl.min(tl.where(x == m, i, V), axis=0))
    if temperature > 0:
        tl.store(weight_ptr + at, tl.sum(_weight(x, m, _rate(temperature)).to(tl.float64), axis=0))


@triton.jit(do_not_specialize=["parts"])
def draw_kernel(
    logits_ptr, temperature_ptr, u_ptr, most_ptr, first_ptr, weight_ptr, token_ptr, row_stride, V, parts,
    PART: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """The token of row program_id(0), int32; −1 where its logits are not finite.

    Grid: (N,). As above; u (N,) fp64, from 0 to below 1. BLOCK_PARTS is a power of two, from `parts` on.
    """
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK_PARTS)
    at = row * parts + j
    m = tl.load(most_ptr + at, mask=j < parts, other=float("-inf"))  # (BLOCK_PARTS,)
    first = tl.load(first_ptr + at, mask=j < parts, other=0)
    M = tl.max(m, axis=0)
    finite = (M > float("-inf")) & (M < float("inf"))
    temperature = tl.load(temperature_ptr + row)
    token = tl.min(tl.where(m == M, first, V), axis=0)
    if (temperature > 0) & finite:
        rate = _rate(temperature)
        scale = _weight(m, M, rate).to(tl.float64)
        weight = tl.load(weight_ptr + at, mask=j < parts, other=0.0) * scale
        cumulated = tl.cumsum(weight, axis=0)
        target = tl.load(u_ptr + row) * tl.max(cumulated, axis=0)
        part = _first_above(cumulated, target, weight, j, BLOCK_PARTS)
        # What is left of the target, in the weights as they are in that part.
        left = target - tl.sum(tl.where(j < part, weight, 0.0), axis=0)
        left = left / tl.sum(tl.where(j == part, scale, 0.0), axis=0)
        m_part = tl.sum(tl.where(j == part, m, 0.0), axis=0)
        i = part * PART + tl.arange(0, PART)
        x = tl.load(logits_ptr + row.to(tl.int64) * row_stride + i, mask=i < V, other=float("-inf")).to(tl.float32)
        weight = _weight(x, m_part, rate).to(tl.float64)  # (PART,)
        token = _first_above(tl.cumsum(weight, axis=0), left, weight, i, V)
    tl.store(token_ptr + row, tl.where(finite, token, -1))


@triton.jit
def _rate(temperature):
    """By which differences of logits are multiplied, for 2^x: log2(e) / temperature, of one within fp32."""
    return 1.4426950408889634 / tl.minimum(tl.maximum(temperature.to(tl.float32), 1e-37), 1e37)


@triton.jit
def _weight(x, m, rate):
    """exp((x − m) / temperature); 0 where all are −∞, and anything where m is not finite otherwise."""
    return tl.exp2((x - tl.where(tl.abs(m) < float("inf"), m, 0.0)) * rate)


@triton.jit
def _first_above(cumulated, target, weight, numbers, none):
    """The first of `numbers` whose cumulated weight is above the target, one of those that have a weight.

    Two sums of the same numbers can differ in their last bits; so where none is above, it is the last with a weight.
    """
    found = tl.min(tl.where((cumulated > target) & (weight > 0), numbers, none), axis=0)
    return tl.minimum(found, tl.max(tl.where(weight > 0, numbers, 0), axis=0))
