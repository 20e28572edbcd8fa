"""What goes into the 8-bit kernel: codes and scales of q, k and v, and v's tiles turned over.

One program reads one block, 128 rows of one head, once: its largest number gives the scale, and the codes go out. A
block of v goes out transposed, (D, 128), and with its keys in the order in which P's columns are read
(`fp8_kernels`, "P's order"): key 8a + 2c + e of every 16 is stored as number 4c + 2a + e. What lies beyond the
last row is stored as zero, so that every tile of v is whole.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def quantize_kernel(
    x_ptr, codes_ptr, scales_ptr, H, T, x_batch_stride, x_head_stride, x_row_stride,
    ROWS: tl.constexpr, D: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """codes and scales of x (B, H, T, D), whose columns are adjacent; strides in elements. Grid: (blocks, B · H).

    codes is (B, H, T, D), or TURNED, (B, H, blocks · D, ROWS); scales (B, H, blocks) fp32. As
    `llmsys.precision.fp8.quantize_blocks`, bit by bit (`div_rn` divides as IEEE has it): NaN stays NaN, infinity
    saturates, neither counts for the scale.
    """
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    rows = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # a row's number times its stride may exceed 2³¹
    columns = tl.arange(0, D)
    at = x_ptr + head // H * x_batch_stride + head % H * x_head_stride + rows[:, None] * x_row_stride
    inside = (rows < T)[:, None]
    x = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    size = tl.abs(x)
    largest = tl.max(tl.max(tl.where(size < float("inf"), size, 0.0), 1), 0)
    scale = tl.where(largest > 0, tl.maximum(tl.div_rn(largest, 448.0), 1.1754943508222875e-38), 1.0)
    tl.store(scales_ptr + head * tl.num_programs(0) + block, scale)
    x = tl.clamp(x * tl.div_rn(1.0, scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    codes = x.to(tl.float8e4nv)
    if TURNED:
        codes = codes.reshape(ROWS // 16, 2, 4, 2, D).permute(4, 0, 2, 1, 3).reshape(D, ROWS)
        at = codes_ptr + (head * tl.num_programs(0) + block) * (D * ROWS)
        tl.store(at + columns[:, None] * ROWS + tl.arange(0, ROWS)[None, :], codes)
    else:
        at = codes_ptr + head * T * D
        tl.store(at + rows[:, None] * D + columns[None, :], codes, mask=inside)
