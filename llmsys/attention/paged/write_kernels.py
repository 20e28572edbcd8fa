"""The kernel that puts K and V of a step's tokens into their slots, and turns q and k on the way.

One program has one token: its row of q, of k and of v. In eager PyTorch a rotation is six kernels, each of which reads
and writes all of q or k; here q is read and written once, and k goes straight to its page.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["angles"])
def write_pages_kernel(
    q_ptr, k_ptr, v_ptr, turned_ptr, key_pages_ptr, value_pages_ptr, slots_ptr, cos_ptr, sin_ptr,
    q_stride_n, q_stride_h, k_stride_n, k_stride_h, v_stride_n, v_stride_h,
    key_stride_page, key_stride_slot, key_stride_h, value_stride_page, value_stride_slot, value_stride_h,
    cos_stride, sin_stride, angles,
    HQ: tl.constexpr, HKV: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, R: tl.constexpr,
    INTERLEAVED: tl.constexpr, PAGE: tl.constexpr, BLOCK_HQ: tl.constexpr, BLOCK_HKV: tl.constexpr,
    BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Token n's q, turned; its k, turned, and its v in their slot, if it has one.

    Grid: (N,). q and `turned` (N, HQ, DK), the latter contiguous; k (N, HKV, DK), v (N, HKV, DV); pages (num_blocks,
    PAGE, HKV, D); slots (N,) int32; cos and sin (angles, R): token n has row n % angles. HQ = 0: there is no q, DV = 0:
    there is no v, R = 0: nothing turns.
    """
    n = tl.program_id(0).to(tl.int64)
    dk = tl.arange(0, BLOCK_DK)
    cos_at, sin_at = cos_ptr, sin_ptr
    if R > 0:
        cos_at += n % angles * cos_stride
        sin_at += n % angles * sin_stride
    if HQ > 0:
        q_head = tl.arange(0, BLOCK_HQ)[:, None]
        q_there = (q_head < HQ) & (dk < DK)[None, :]
        q = _turned(
            q_ptr + n * q_stride_n + q_head * q_stride_h, dk[None, :], q_there, cos_at, sin_at, DK, R, INTERLEAVED
        )
        tl.store(turned_ptr + (n * HQ + q_head) * DK + dk[None, :], q, mask=q_there)
    slot = tl.load(slots_ptr + n)
    if slot >= 0:
        page = (slot // PAGE).to(tl.int64)
        place = (slot % PAGE).to(tl.int64)
        head = tl.arange(0, BLOCK_HKV)[:, None]
        k_there = (head < HKV) & (dk < DK)[None, :]
        k = _turned(
            k_ptr + n * k_stride_n + head * k_stride_h, dk[None, :], k_there, cos_at, sin_at, DK, R, INTERLEAVED
        )
        key_at = key_pages_ptr + page * key_stride_page + place * key_stride_slot
        tl.store(key_at + head * key_stride_h + dk[None, :], k, mask=k_there)
        if DV > 0:
            dv = tl.arange(0, BLOCK_DV)[None, :]
            v_there = (head < HKV) & (dv < DV)
            v = tl.load(v_ptr + n * v_stride_n + head * v_stride_h + dv, mask=v_there)
            value_at = value_pages_ptr + page * value_stride_page + place * value_stride_slot
            tl.store(value_at + head * value_stride_h + dv, v, mask=v_there)


@triton.jit
def _turned(at, d, there, cos_at, sin_at, DK: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The elements `d` of heads that begin `at`, of which the last R are turned: x · cos + its partner · sin."""
    x = tl.load(at + d, mask=there)
    if R > 0:
        j = d - (DK - R)  # the number among those that turn
        if INTERLEAVED:
            partner = j ^ 1
            first = j % 2 == 0
        else:
            partner = (j + R // 2) % R
            first = j < R // 2
        turns = there & (j >= 0)
        other = tl.load(at + (DK - R) + partner, mask=turns, other=0.0).to(tl.float32)
        other = tl.where(first, -other, other)
        of_pair = (j >= 0) & (j < R)
        cos = tl.load(cos_at + j, mask=of_pair, other=1.0).to(tl.float32)
        sin = tl.load(sin_at + j, mask=of_pair, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) * cos + other * sin).to(x.dtype)
    return x
