"""Gluon, as the hopper kernels use it: the one place that knows which version of Triton is here (3.6 to 3.9).

Gluon is the layer below Triton's language. Triton's compiler decides how a tile lies in shared memory and registers,
which warps do what, and when they wait; in Gluon the kernel says so. It is a part of Triton, in
`triton.experimental.gluon`, and its names still change. Kernels import from here (on a laptop, `simulated.gluon` takes
this module's place):

- `gluon.jit`, and `gl`, the language; `aggregate`, a struct that kernels can pass around;
- `tma`, the copy engine: `async_copy_global_to_shared`, `async_copy_shared_to_global`, `store_wait`, under the names
  that they had first: Triton 3.8 calls the first two `async_load` and `async_store`, and 3.9 refuses the old names;
- `add_to_memory`, by which the copy engine adds a tile to what is in memory;
- `mbarrier`, barriers in shared memory; `fence_async_shared`, to be called before an engine reads what threads wrote;
- `warpgroup_mma`, the asynchronous matrix product, and `warpgroup_mma_wait`;
- `wait_for_warpgroup`, which waits for all warps of a role; its name differs between the versions;
- `launch_dependents`: from here on the next kernel may be launched, if it was asked to come early (its `launch_pdl`);
- `TensorDescriptor`, which tells the copy engine, from the host, what a tensor looks like.
"""

from types import ModuleType

from llmsys.hardware.tier import load_triton

load_triton()

from triton.experimental import gluon  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon.language._core import builtin  # noqa: E402
from triton.experimental.gluon.language.nvidia.hopper import (  # noqa: E402
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.language.nvidia.hopper import tma as tritons_tma  # noqa: E402
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # noqa: E402
from triton.language.extra.cuda import gdc_launch_dependents as launch_dependents  # noqa: E402

wait_for_warpgroup = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # 3.7 | 3.6

if hasattr(gluon, "aggregate"):  # 3.8
    aggregate = gluon.aggregate
else:
    from triton.language.core import _aggregate as aggregate  # how Triton's own Gluon tutorials name it

tma = ModuleType("tma", "The copy engine.")  # a module, because a kernel may use what is in one, and in nothing else
tma.store_wait = tritons_tma.store_wait
if hasattr(tritons_tma, "async_load"):  # 3.8
    tma.async_copy_global_to_shared = tritons_tma.async_load
    tma.async_copy_shared_to_global = tritons_tma.async_store
else:
    tma.async_copy_global_to_shared = tritons_tma.async_copy_global_to_shared
    tma.async_copy_shared_to_global = tritons_tma.async_copy_shared_to_global


@builtin
def _reduce_into_memory(desc, at, tile, _semantic=None):
    """Start to add a tile of shared memory to the tensor in memory, at these coordinates.

    As `tma.async_copy_shared_to_global`, with a sum. The compiler of Triton 3.6 and 3.7 has it, and their Gluon does
    not name it.
    """
    from triton._C.libtriton import ir  # not before: later versions need not have it there

    at = _semantic._convert_to_ir_values(at, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, desc.handle, at, tile.handle)


add_to_memory = getattr(tritons_tma, "async_atomic_add", _reduce_into_memory)  # 3.8 | 3.6

__all__ = [
    "TensorDescriptor",
    "add_to_memory",
    "aggregate",
    "fence_async_shared",
    "gl",
    "gluon",
    "launch_dependents",
    "mbarrier",
    "tma",
    "wait_for_warpgroup",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]
