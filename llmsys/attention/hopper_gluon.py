"""Gluon, as the hopper kernels use it: the one place that knows which version of Triton is here (3.6 or 3.7).

Gluon is the layer below Triton's language. Triton's compiler decides how a tile lies in shared memory and registers,
which warps do what, and when they wait; in Gluon the kernel says so. It is a part of Triton, in
`triton.experimental.gluon`, and its names still move. Kernels import from here:

- `gluon.jit`, and `gl`, the language; `aggregate`, a struct that kernels can pass around;
- `tma`, the copy engine: `async_copy_global_to_shared`, `async_copy_shared_to_global`;
- `mbarrier`, barriers in shared memory; `fence_async_shared`, before the engines read what threads have written;
- `warpgroup_mma`, the asynchronous matrix product, and `warpgroup_mma_wait`;
- `wait_for_warpgroup`, all warps of this partition, whose name differs;
- `TensorDescriptor`, which tells the copy engine, from the host, what a tensor looks like.
"""

from llmsys.hardware.tier import load_triton

load_triton()

from triton.experimental import gluon  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon.language.nvidia.hopper import (  # noqa: E402
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # noqa: E402
from triton.language.core import _aggregate as aggregate  # noqa: E402  (how Triton's own Gluon tutorials name it)

wait_for_warpgroup = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # 3.7 | 3.6

__all__ = [
    "TensorDescriptor",
    "aggregate",
    "fence_async_shared",
    "gl",
    "gluon",
    "mbarrier",
    "tma",
    "wait_for_warpgroup",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]
