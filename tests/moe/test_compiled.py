"""The experts' kernels, compiled for GPUs that need not be here; and their launches, which know no load."""

import itertools

import pytest
import torch

from llmsys.hardware.compiler import Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.occupancy import SMS
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.moe.experts import Groups, gated_silu, group_by_expert, grouped_matmul, permute, unpermute
from llmsys.moe.experts.groups import BLOCKS_M
from llmsys.moe.experts.matmul import weight_gradient
from llmsys.moe.experts.rows import gated_silu_gradient, weights_gradient
from tests.attention.sample import sample
from tests.support.waiting import nothing_waits

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
from llmsys.moe.experts import matmul_kernels, row_kernels  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32


def empty(*shape, dtype=torch.int32):
    return torch.empty(shape, dtype=dtype, device="meta")


def groups(N, K, E, block_m) -> Groups:
    R = N * K
    tiles = R // block_m + min(E, R)
    return Groups(empty(R), empty(N, K), empty(E + 1), empty(tiles), empty(tiles), block_m)


def product(block_m, IN, OUT, dtype=BF16, *, transposed=False, target="sm_90"):
    """What a grouped product compiles; `transposed` as for the gradient of its rows."""
    recorder = Recorder(matmul_kernels.grouped_matmul_kernel, target=target)
    weight = empty(64, IN, OUT, dtype=dtype).transpose(1, 2) if transposed else empty(64, OUT, IN, dtype=dtype)
    grouped_matmul(empty(8192, IN, dtype=dtype), weight, groups(1024, 8, 64, block_m), kernel=recorder)
    return recorder.builds[0]


def gradient(IN, OUT, dtype=BF16, *, target="sm_90"):
    recorder = Recorder(matmul_kernels.weight_gradient_kernel, target=target)
    x, dout = empty(8192, IN, dtype=dtype), empty(8192, OUT, dtype=dtype)
    weight_gradient(dout, x, groups(1024, 8, 64, 128), kernel=recorder)
    return recorder.builds[0]


def small(C):
    """The kernels that move rows of C elements, for DeepSeek-V3's 8 of 256 experts."""
    shape, x, rows = groups(512, 8, 256, 16), empty(512, C, dtype=BF16), empty(4096, C, dtype=BF16)
    weights, wide = empty(512, 8, dtype=FP32), empty(4096, 2 * C, dtype=BF16)
    recorders = {name: Recorder(getattr(row_kernels, f"{name}_kernel")) for name in SMALL}
    permute(x, shape, kernel=recorders["gather_rows"])
    unpermute(rows, weights, shape, kernel=recorders["combine_rows"])
    weights_gradient(x, rows, shape, kernel=recorders["weights_gradient"])
    gated_silu(wide, shape, kernel=recorders["gated_silu"])
    gated_silu_gradient(rows, wide, shape, kernel=recorders["gated_silu_gradient"])
    return [recorder.builds[0] for recorder in recorders.values()]


SMALL = ("gather_rows", "combine_rows", "weights_gradient", "gated_silu", "gated_silu_gradient")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, list[Compiled]]:
    """Through one compiler's process. PERFORMANCE.md's shape, 2048 → 1408, is always among them."""
    shapes = [(2048, 1408), (1408, 2048), (7168, 4096), (576, 384)]
    wanted = {
        "large": [
            product(block_m, *shape, transposed=transposed)
            for block_m, shape, transposed in sample(
                itertools.product((64, 128), shapes, (False, True)),
                1,
                always=[(128, (2048, 1408), False), (128, (1408, 2048), True), (64, (2048, 1408), False)],
            )
        ],
        "few": [product(16, 7168, 4096), product(32, 2048, 1408)],
        "gradient": [gradient(2048, 1408)],
        "small": small(2048),
        "others": [
            product(*each, target=target)
            for each, target in sample(
                itertools.product(itertools.product(BLOCKS_M, (2048,), (1408,), (BF16, FP32)), ("sm_80", "sm_89")),
                1,
                always=[((128, 2048, 1408, BF16), "sm_89"), ((128, 2048, 1408, FP32), "sm_90")],
            )
        ],
    }
    wanted["others"].append(gradient(2048, 1408, target="sm_89"))
    flat = [(name, build) for name, builds in wanted.items() for build in builds]
    kernels = compile_kernels([build for _, build in flat], cache=tmp_path_factory.mktemp("compiled"))
    found = {name: [] for name in wanted}
    for (name, _), kernel in zip(flat, kernels, strict=True):
        assert isinstance(kernel, Compiled), str(kernel)
        found[name].append(kernel)
    return found


def test_compiled_for_hopper_products_use_the_tensor_cores_of_four_warps_and_spill_nothing(compiled):
    for kernel in (*compiled["large"], *compiled["gradient"]):
        assert kernel.wgmma and kernel.spill_bytes == 0 and not kernel.warnings, str(kernel)
        assert "cp.async" in kernel.ptx and kernel.occupancy().programs >= 2, str(kernel)


def test_few_rows_use_tensor_cores_and_spill_nothing_and_leave_room_for_another_program(compiled):
    for kernel in compiled["few"]:
        assert "mma.sync" in kernel.ptx and kernel.spill_bytes == 0 and not kernel.warnings, str(kernel)
        assert kernel.occupancy().programs >= 2, str(kernel)


def test_rows_are_moved_sixteen_bytes_a_thread_and_nothing_is_spilled(compiled):
    for kernel in compiled["small"]:
        assert kernel.spill_bytes == 0 and kernel.occupancy().programs >= 8, str(kernel)
        assert "ld.global.v4" in kernel.ptx, kernel.name
        assert kernel.name == "weights_gradient_kernel" or "st.global.v4" in kernel.ptx, kernel.name


def test_other_gpus_have_shared_memory_for_the_tiles(compiled):
    for kernel in compiled["others"]:
        assert kernel.spill_bytes == 0, str(kernel)
        assert kernel.shared_bytes <= SMS[kernel.target].shared_bytes_per_program, str(kernel)


def test_sorting_and_launching_read_no_number_from_the_device_so_any_load_has_the_same_grid():
    with nothing_waits():
        made = group_by_expert(empty(1024, 8, dtype=torch.int64), 64)
        assert made.block_m == 128 and made.tile_expert.shape == (8192 // 128 + 64,)
        recorder = Recorder(matmul_kernels.grouped_matmul_kernel)
        grouped_matmul(empty(8192, 2048, dtype=BF16), empty(64, 1408, 2048, dtype=BF16), made, kernel=recorder)
    assert recorder.grids == [(128 * 11,)]
