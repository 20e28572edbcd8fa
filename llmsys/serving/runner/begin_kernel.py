"""The kernel with which a graph begins; what it computes stands in `begin`."""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["M"])
def begin_kernel(
    rows_ptr, newest_ptr, row_ptr, tokens_ptr, columns_ptr, entries_ptr, filled_ptr, table_ptr, M, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid: (B, M in blocks). Program (i, b) copies BLOCK entries of table i; the first of i fills in its token.

    Who copies the column of a new entry also writes it to the rows, and does not read it there: other threads of the
    program may have written it by then, or not.
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
        token = tl.load(tokens_ptr + i)
        newest = tl.maximum(tl.load(newest_ptr + row), 0)
        tl.store(filled_ptr + i, tl.where(token < 0, newest, token))
