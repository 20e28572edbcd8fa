"""Page numbers beyond 32 bits without the memory: exercise (c)'s kernel is handed a table whose numbers are all larger
by `FAR`, and pointers that lie as much further down. The sum is the same, if it is made in 64 bits.
"""

from collections.abc import Callable

import triton
import triton.language as tl

FAR = 2**24  # pages; by a stride of 128 elements that is 2^31 already, and none of the check's pages is so small


@triton.jit
def far_pages(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, table_ptr, lengths_ptr,
    k_stride_page, k_stride_slot, k_stride_head, v_stride_page, v_stride_slot, v_stride_head, table_stride, scale_log2,
    far, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, KERNEL: tl.constexpr,
):  # fmt: skip
    """KERNEL, with page `far` where k_ptr and v_ptr are."""
    back = tl.cast(far, tl.int64)
    KERNEL(
        q_ptr, k_ptr - back * k_stride_page, v_ptr - back * v_stride_page, o_ptr, lse_ptr, table_ptr, lengths_ptr,
        k_stride_page, k_stride_slot, k_stride_head, v_stride_page, v_stride_slot, v_stride_head, table_stride,
        scale_log2, G, D, PAGE, BLOCK_G, BLOCK_N, BLOCK_D,
    )  # fmt: skip


class FarAway:
    """A kernel with the arguments of exercise (c), launched on the same pages under numbers that are larger by FAR."""

    def __init__(self, kernel: object):
        self.kernel = kernel

    def __getitem__(self, grid) -> Callable[..., None]:
        def launch(*args, **options) -> None:
            far_pages[grid](*args, FAR, **options, KERNEL=self.kernel)

        return launch
