"""The two grouped products: rows times the matrix of their expert, and the gradient of those matrices.

The first has ragged rows and a whole inner dimension: a tile of rows is of one expert, and what it multiplies with is
chosen by that expert's number. In the second the ragged dimension is the inner one: a program has a tile of one
expert's matrix and walks over that expert's rows, of which there may be none. Products are added up in fp32.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def grouped_matmul_kernel(
    x_ptr, weight_ptr, out_ptr, starts_ptr, tile_expert_ptr, tile_row_ptr,
    x_stride, weight_stride_e, weight_stride_out, weight_stride_in, out_stride, OUT, IN, E, tiles,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[r] = x[r] · weight[e]ᵀ for the rows r of one tile, which are expert e's, and BLOCK_N of the OUT columns.

    Grid: (tiles · ⌈OUT / BLOCK_N⌉,). x (R, IN), out (R, OUT), both with adjacent columns; weight (E, OUT, IN), any
    strides; starts, tile_expert and tile_row are those of `groups.Groups`, and BLOCK_M its block_m.

    Programs that run at the same time should read the same: GROUP tiles of rows after another have the same columns of
    the matrix, if they are of one expert, and these rows are still in the L2 cache when the next columns come.
    """
    columns = tl.cdiv(OUT, BLOCK_N)
    program = tl.program_id(0)
    first = program // (GROUP * columns) * GROUP
    in_group = tl.minimum(tiles - first, GROUP)
    tile = first + program % (GROUP * columns) % in_group
    column = program % (GROUP * columns) // in_group

    e = tl.load(tile_expert_ptr + tile)
    if e < E:
        rows = tl.load(tile_row_ptr + tile) + tl.arange(0, BLOCK_M)
        row_there = (rows < tl.load(starts_ptr + e + 1))[:, None]
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        n_there = (n < OUT)[None, :]
        k = tl.arange(0, BLOCK_K)
        x_at = x_ptr + rows.to(tl.int64)[:, None] * x_stride + k[None, :]  # (BLOCK_M, BLOCK_K)
        of_expert = weight_ptr + e.to(tl.int64) * weight_stride_e
        weight_at = of_expert + k[:, None] * weight_stride_in + n[None, :] * weight_stride_out  # (BLOCK_K, BLOCK_N)
        out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, IN, BLOCK_K):
            inside = k < IN - start
            x = tl.load(x_at, mask=row_there & inside[None, :], other=0.0)
            weight = tl.load(weight_at, mask=n_there & inside[:, None], other=0.0)
            out = tl.dot(x, weight, out, input_precision=PRECISION)
            x_at += BLOCK_K
            weight_at += BLOCK_K * weight_stride_in
        out_at = out_ptr + rows.to(tl.int64)[:, None] * out_stride + n[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=row_there & n_there)


@triton.jit
def weight_gradient_kernel(
    dout_ptr, x_ptr, dweight_ptr, starts_ptr, dout_stride, x_stride, OUT, IN,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dweight[e] = Σ_r dout[r]ᵀ · x[r] over the rows of expert e = program_id(1): a tile of (BLOCK_N, BLOCK_K) of it.

    Grid: (⌈OUT / BLOCK_N⌉ · ⌈IN / BLOCK_K⌉, E). dout (R, OUT) and x (R, IN), both with adjacent columns; dweight
    (E, OUT, IN), contiguous. An expert without a row gets zeros.
    """
    e = tl.program_id(1)
    columns = tl.cdiv(IN, BLOCK_K)
    n = tl.program_id(0) // columns * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) % columns * BLOCK_K + tl.arange(0, BLOCK_K)
    n_there, k_there = (n < OUT)[:, None], (k < IN)[None, :]
    start = tl.load(starts_ptr + e)
    stop = tl.load(starts_ptr + e + 1)
    r = tl.arange(0, BLOCK_R)
    first = start.to(tl.int64)
    dout_at = dout_ptr + (first + r)[None, :] * dout_stride + n[:, None]  # (BLOCK_N, BLOCK_R): transposed
    x_at = x_ptr + (first + r)[:, None] * x_stride + k[None, :]  # (BLOCK_R, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for row in range(start, stop, BLOCK_R):
        there = r < stop - row
        dout = tl.load(dout_at, mask=n_there & there[None, :], other=0.0)
        x = tl.load(x_at, mask=k_there & there[:, None], other=0.0)  # zeros twice: what lies there may be NaN
        total = tl.dot(dout, x, total, input_precision=PRECISION)
        dout_at += BLOCK_R * dout_stride
        x_at += BLOCK_R * x_stride
    at = dweight_ptr + e.to(tl.int64) * OUT * IN + n.to(tl.int64)[:, None] * IN + k[None, :]
    tl.store(at, total.to(dweight_ptr.dtype.element_ty), mask=n_there & k_there)
