"""The kernels with which a decode step in a graph begins and ends; what they compute stands in `begin`."""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["M"])
def begin_kernel(
    rows_ptr, newest_ptr, row_ptr, seed_ptr, computed_ptr, tokens_ptr, columns_ptr, entries_ptr,
    filled_ptr, positions_ptr, slots_ptr, seq_lens_ptr, u_ptr, table_ptr, M, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (B, M in blocks). Program (i, b) copies BLOCK entries of table i; the first of i does all else.

    Who copies the column of a new entry also writes it to the rows, and nobody reads it there: other threads may have
    written it by then, or not.
    """
    i, b = tl.program_id(0), tl.program_id(1)
    row = tl.load(row_ptr + i)  # int64
    column = tl.load(columns_ptr + i)
    entry = tl.load(entries_ptr + i)
    j = b * BLOCK + tl.arange(0, BLOCK)
    table = tl.load(rows_ptr + row * M + j, mask=j < M)
    tl.store(table_ptr + i.to(tl.int64) * M + j, tl.where(j == column, entry, table), mask=j < M)
    tl.store(rows_ptr + row * M + j, tl.zeros_like(j) + entry, mask=(j == column) & (j < M))
    if b == 0:
        here = row > 0
        computed = tl.load(computed_ptr + i)
        at = computed // PAGE
        block = tl.where(at == column, entry, tl.load(rows_ptr + row * M + at))
        token = tl.load(tokens_ptr + i)
        newest = tl.maximum(tl.load(newest_ptr + row), 0)
        tl.store(filled_ptr + i, tl.where(token < 0, newest, token))
        tl.store(positions_ptr + i, computed)
        tl.store(slots_ptr + i, tl.where(here, block * PAGE + computed % PAGE, -1))
        tl.store(seq_lens_ptr + i, tl.where(here, computed + 1, 0))
        tl.store(u_ptr + i, _uniform(tl.load(seed_ptr + i), computed + 1))


@triton.jit
def end_kernel(newest_ptr, row_ptr, computed_ptr, tokens_ptr, columns_ptr, drawn_ptr):
    """Grid: (B,). Keeps token i as its request's newest, and makes the step in the buffer the next one."""
    i = tl.program_id(0)
    row = tl.load(row_ptr + i)
    here = row > 0
    tl.store(newest_ptr + row, tl.load(drawn_ptr + i), mask=here)
    tl.store(computed_ptr + i, tl.load(computed_ptr + i) + 1, mask=here)
    tl.store(tokens_ptr + i, -1, mask=here)
    tl.store(columns_ptr + i, -1)


@triton.jit
def _uniform(seed, place):
    """`llmsys.serving.sampling.sampler.uniform`: SplitMix64 of the seed, then of the place."""
    step: tl.constexpr = 0x9E3779B97F4A7C15
    bits = _mixed(seed.to(tl.uint64, bitcast=True) + tl.full([], step, tl.uint64))
    bits = _mixed(bits + (place.to(tl.uint64) + 1) * tl.full([], step, tl.uint64))
    return (bits >> 12).to(tl.int64).to(tl.float64) * 2.220446049250313e-16  # 2⁻⁵²


@triton.jit
def _mixed(x):
    first: tl.constexpr = 0xBF58476D1CE4E5B9
    second: tl.constexpr = 0x94D049BB133111EB
    x = (x ^ (x >> 30)) * tl.full([], first, tl.uint64)
    x = (x ^ (x >> 27)) * tl.full([], second, tl.uint64)
    return x ^ (x >> 31)
