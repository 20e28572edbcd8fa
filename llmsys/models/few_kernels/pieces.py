"""What all kernels of the step have in common: a program's weights are asked for first, and multiplied when x is there.

With few sequences a step is the reading of its weights, each used once a sequence. There is nothing to share between
programs, so a program is small: one warp, a few rows of a matrix, all of their columns. It holds the rows in registers,
in pieces of W columns, so that a lane loads 16 bytes at a time and adds up what it has before lanes are added:

    y[r] = Σ_k w[r, k] x[k] = Σ_lane (Σ_piece …)       one reduction over lanes, and no barrier, for there is one warp

**Several sequences.** They share the weights, and each is a product of its own. What lanes have summed up is kept until
all sequences are there, and lanes are added last: an exchange between lanes between two sequences would keep the
second one's loads from being asked for before the first one's have come.

**Early.** A kernel here is launched while the one before it runs (programmatic dependent launch,
https://docs.nvidia.com/cuda/cuda-c-programming-guide/#programmatic-dependent-launch-and-synchronization): `gdc_wait`
returns when all that the kernel before has written can be read. Weights are nobody's result, so they are loaded before
it, while the kernel before still computes. What counts as nobody's result: weights, tables of the step, pages that
earlier steps have written. Since every kernel waits, one that is past its wait knows that all before it are done.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def load_rows(w_ptr, rows, there, K: tl.constexpr, W: tl.constexpr):
    """Rows (R,) of a matrix (…, K) as a tuple of pieces (R, W), zeros where a row is not `there` or beyond K."""
    pieces = ()
    for start in tl.static_range(0, K, W):
        k = start + tl.arange(0, W)
        at = w_ptr + rows[:, None] * K + k[None, :]
        if start + W <= K:
            piece = tl.load(at, mask=there[:, None] & (k >= 0)[None, :], other=0.0)
        else:
            piece = tl.load(at, mask=there[:, None] & (k < K)[None, :], other=0.0)
        pieces = pieces + (piece,)
    return pieces


@triton.jit
def multiply(
    pieces, x_ptr, there, K: tl.constexpr, R: tl.constexpr, W: tl.constexpr, OWN: tl.constexpr
):  # fmt: skip
    """The rows' products with x (K,) in fp32, as far as one lane adds them up: (R, W / 8), to be summed over axis 1."""
    total = tl.zeros((R, W), tl.float32)
    for i in tl.static_range((K + W - 1) // W):
        k = i * W + tl.arange(0, W)[None, :]
        wanted = k < K
        if OWN:
            # Lanes have different rows, and each loads x for its own: else x, or what is larger, the weights would be
            # moved between lanes. (The mask names rows so that the compiler does not load x once after all.)
            wanted = wanted & there[:, None]
            k = tl.broadcast_to(k, (R, W))
        x = tl.load(x_ptr + k, mask=wanted, other=0.0).to(tl.float32)  # (1, W), or (R, W)
        total += pieces[i].to(tl.float32) * x
    return tl.sum(tl.reshape(total, (R, W // 8, 8)), axis=2)


@triton.jit
def load_squares(squares_ptr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """The parts of Σ h², for `reciprocal_rms`."""
    part = tl.arange(0, BLOCK_PARTS)
    return tl.load(squares_ptr + part, mask=part < PARTS, other=0.0)


@triton.jit
def reciprocal_rms(squares, C: tl.constexpr, eps):
    """1 / √(mean(h²) + eps) of a residual of C numbers."""
    return tl.rsqrt(tl.sum(squares) / C + eps)


@triton.jit
def store_residual(
    h, h_ptr, x_ptr, squares_ptr, scale, rows, there, part, sequence, C: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """h of these rows, and what the next kernel wants of it: x = h · scale, and the sum of h² over the rows.

    The next kernel's norm is x / rms(h). Its programs are many, so what can be done once is done here.
    """
    tl.store(h_ptr + sequence * C + rows, h, mask=there)
    tl.store(x_ptr + sequence * C + rows, (h * scale).to(x_ptr.dtype.element_ty), mask=there)
    tl.store(squares_ptr + sequence * PARTS + part, tl.sum(tl.where(there, h * h, 0.0)))
