"""The small kernels of a Llama's step. Each computes in fp32 and rounds once, at the end; the plain form rounds after
every operation.

What they take is the time until their bytes are there, so a program asks for all it needs at once, and its warps have
16 bytes a thread in 16 bits.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def add_norm_kernel(x_ptr, y_ptr, weight_ptr, h_ptr, y_stride, eps, C: tl.constexpr, BLOCK: tl.constexpr):
    """Row program_id(0): x ← x + y, h = x / √(mean(x²) + eps) · weight.

    Grid: (N,). x and h (N, C), contiguous; y (N, C), its C adjacent, or None: then x stays as it is. weight (C,).
    BLOCK is the next power of two from C. What is normalised is the sum in fp32, before it is rounded to be stored.
    """
    n = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    there = c < C
    x = tl.load(x_ptr + n * C + c, mask=there, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + c, mask=there, other=0.0).to(tl.float32)
    if y_ptr is not None:
        x += tl.load(y_ptr + n * y_stride + c, mask=there, other=0.0).to(tl.float32)
        tl.store(x_ptr + n * C + c, x.to(x_ptr.dtype.element_ty), mask=there)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / C + eps)
    tl.store(h_ptr + n * C + c, (x * scale * weight).to(h_ptr.dtype.element_ty), mask=there)


@triton.jit
def swiglu_kernel(gate_up_ptr, out_ptr, gate_up_stride, I, BLOCK: tl.constexpr):
    """BLOCK elements of a row: silu(gate) · up, silu(g) = g / (1 + e^−g).

    Grid: (N, ⌈I / BLOCK⌉). gate_up (N, 2 I), a row's 2 I adjacent, gate before up; out (N, I), contiguous.
    """
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < I
    at = gate_up_ptr + n * gate_up_stride + i
    gate = tl.load(at, mask=there, other=0.0).to(tl.float32)
    up = tl.load(at + I, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + n * I + i, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def rotation_kernel(positions_ptr, frequencies_ptr, cos_ptr, sin_ptr, R: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin of the angles of token program_id(0), each twice: element j and j + R/2 are a pair.

    Grid: (N,). positions (N,) int32; frequencies (R / 2,) fp32; cos and sin (N, R), contiguous. BLOCK is a power of two
    from R / 2 on. Positions may be any: the angles are not looked up.
    """
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    there = i < R // 2
    angle = tl.load(positions_ptr + n).to(tl.float32) * tl.load(frequencies_ptr + i, mask=there, other=0.0)
    cos = tl.cos(angle).to(cos_ptr.dtype.element_ty)
    sin = tl.sin(angle).to(sin_ptr.dtype.element_ty)
    at = n * R + i
    tl.store(cos_ptr + at, cos, mask=there)
    tl.store(cos_ptr + at + R // 2, cos, mask=there)
    tl.store(sin_ptr + at, sin, mask=there)
    tl.store(sin_ptr + at + R // 2, sin, mask=there)
