"""The kernel that puts K and V of a step's tokens into their slots, and normalises and turns q and k on the way.

A program has some heads of one token: of q, of k and of v. In eager PyTorch a rotation is five kernels and a norm is
eight, each of which reads and writes all of q or k; here q is read and written once, and k goes straight to its page.

When few tokens are decoded, what takes the time is not bytes but waiting for them. So nothing that a program loads
depends on what it has loaded before: where the slot says that a token is kept nowhere, only the stores are left out.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["angles"])
def write_pages_kernel(
    q_ptr, k_ptr, v_ptr, turned_ptr, key_pages_ptr, value_pages_ptr, slots_ptr, cos_ptr, sin_ptr,
    q_norm_ptr, k_norm_ptr,
    q_stride_n, q_stride_h, k_stride_n, k_stride_h, v_stride_n, v_stride_h,
    key_stride_page, key_stride_slot, key_stride_h, value_stride_page, value_stride_slot, value_stride_h,
    cos_stride, sin_stride, angles, eps,
    HQ: tl.constexpr, HKV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, R: tl.constexpr,
    INTERLEAVED: tl.constexpr, PAGE: tl.constexpr, TILE_HQ: tl.constexpr, TILE_HKV: tl.constexpr,
    BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Token n's q, turned; its k, turned, and its v in their slot, if it has one.

    Grid: (N, P). Program (n, p) has the TILE_HQ heads of q from p · TILE_HQ on, and the TILE_HKV of k and v from
    p · TILE_HKV on, both powers of two. q and `turned` (N, HQ, DK), the latter contiguous; k (N, HKV, DK), v (N, HKV,
    DV); pages (num_blocks, PAGE, HKV, D); slots (N,) int32; cos and sin (angles, R): token n has row n % angles; norms
    (DK,), or None. HQ = 0: there is no q, DV = 0: there is no v, R = 0: nothing turns.
    """
    n = tl.program_id(0).to(tl.int64)
    dk = tl.arange(0, BLOCK_DK)[None, :]
    slot = tl.load(slots_ptr + n)
    cos_at, sin_at = cos_ptr, sin_ptr
    if R > 0:
        cos_at += n % angles * cos_stride
        sin_at += n % angles * sin_stride
    head = tl.program_id(1) * TILE_HKV + tl.arange(0, TILE_HKV)[:, None]
    k_there = (head < HKV) & (dk < DK)
    k = _heads(
        k_ptr + n * k_stride_n + head * k_stride_h, dk, k_there, cos_at, sin_at, k_norm_ptr, eps, DK, R, INTERLEAVED
    )
    if DV > 0:
        dv = tl.arange(0, BLOCK_DV)[None, :]
        v_there = (head < HKV) & (dv < DV)
        v = tl.load(v_ptr + n * v_stride_n + head * v_stride_h + dv, mask=v_there)
    if HQ > 0:
        q_head = tl.program_id(1) * TILE_HQ + tl.arange(0, TILE_HQ)[:, None]
        q_there = (q_head < HQ) & (dk < DK)
        q = _heads(
            q_ptr + n * q_stride_n + q_head * q_stride_h, dk, q_there, cos_at, sin_at, q_norm_ptr, eps, DK, R,
            INTERLEAVED,
        )  # fmt: skip
        tl.store(turned_ptr + (n * HQ + q_head) * DK + dk, q, mask=q_there)
    kept = slot >= 0
    page = (slot // PAGE).to(tl.int64)
    place = (slot % PAGE).to(tl.int64)
    key_at = key_pages_ptr + page * key_stride_page + place * key_stride_slot
    tl.store(key_at + head * key_stride_h + dk, k, mask=k_there & kept)
    if DV > 0:
        value_at = value_pages_ptr + page * value_stride_page + place * value_stride_slot
        tl.store(value_at + head * value_stride_h + dv, v, mask=v_there & kept)


@triton.jit
def _heads(
    at, d, there, cos_at, sin_at, norm_ptr, eps, DK: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr
):  # fmt: skip
    """The elements `d` of heads that begin `at`, normalised; the last R are turned: x · cos + its partner · sin.

    In fp32 until the end. The partner is loaded a second time, for which the first has brought it near.
    """
    x = tl.load(at + d, mask=there, other=0.0)
    dtype = x.dtype
    if norm_ptr is not None:
        x = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / DK + eps)[:, None]
        x = x * scale * tl.load(norm_ptr + d, mask=d < DK, other=0.0).to(tl.float32)
    if R > 0:
        j = d - (DK - R)  # the number among those that turn
        if INTERLEAVED:
            partner = j ^ 1
            first = j % 2 == 0
        else:
            partner = (j + R // 2) % R
            first = j < R // 2
        of_pair = (j >= 0) & (j < R)
        other = tl.load(at + (DK - R) + partner, mask=there & of_pair, other=0.0).to(tl.float32)
        if norm_ptr is not None:
            other = other * scale * tl.load(norm_ptr + (DK - R) + partner, mask=of_pair, other=0.0).to(tl.float32)
        other = tl.where(first, -other, other)
        cos = tl.load(cos_at + j, mask=of_pair, other=1.0).to(tl.float32)
        sin = tl.load(sin_at + j, mask=of_pair, other=0.0).to(tl.float32)
        x = x.to(tl.float32) * cos + other * sin
    return x.to(dtype)
