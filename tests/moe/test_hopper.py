"""The grouped products in Gluon: compiled for Hopper anywhere; which matrices they take; on a Hopper GPU, their numbers
(tests/moe/test_on_gpu.py)."""

import re

import pytest
import torch

from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.tier import triton_installed
from llmsys.moe.experts import hopper
from llmsys.moe.experts.hopper import BLOCK_M, NARROW, REGISTERS, WIDE, tiles_for

KERNELS = "llmsys.moe.experts.hopper_kernels"
SM_90 = 227 * 1024  # bytes of shared memory that a program can have
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def described(dtype, *block: int) -> str:
    layout = (
        f"NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank={len(block)}, "
        "transposed=False, fp4_padded=False, cga_layout=[])"
    )
    return f"tensordesc<{TYPES[dtype]}[{','.join(map(str, block))}],{layout}>"


def product(tiles, transposed, dtype=torch.bfloat16) -> Build:
    N, K, rows = tiles.columns, tiles.inner, BLOCK_M // 2
    signature = {
        "x_desc": described(dtype, rows, K),
        "weight_desc": described(dtype, 1, N, K) if transposed else described(dtype, 1, K, N),
        "out_desc": described(dtype, 1, 1, rows, tiles.piece),
        **dict.fromkeys(("starts_ptr", "tile_expert_ptr", "tile_row_ptr", "count_ptr"), "*i32"),
        "columns": "i32", "k_tiles": "i32",
    }  # fmt: skip
    constants = {"TRANSPOSED": transposed, "SLOTS": tiles.slots, "GROUP": hopper.GROUP, "REGISTERS": REGISTERS}
    return Build(f"{KERNELS}:grouped_matmul_hopper_kernel", signature, constants, num_warps=4)


def gradient(tiles, dtype=torch.bfloat16) -> Build:
    N, K, rows = tiles.columns, tiles.inner, BLOCK_M // 2
    signature = {
        "dout_desc": described(dtype, 1, 1, K, rows), "x_desc": described(dtype, 1, 1, K, N),
        "out_desc": described(dtype, 1, rows, tiles.piece), "starts_ptr": "*i32", "by_load_ptr": "*i32",
        "m_tiles": "i32", "columns": "i32", "E": "i32",
    }  # fmt: skip
    constants = {"SLOTS": tiles.slots, "REGISTERS": REGISTERS}
    return Build(f"{KERNELS}:weight_gradient_hopper_kernel", signature, constants, num_warps=4)


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_compiled_for_hopper_warps_have_roles_and_nothing_spills(tmp_path):
    builds = [product(tiles, transposed) for tiles in (WIDE, NARROW) for transposed in (True, False)]
    builds += [gradient(WIDE), gradient(NARROW, torch.float16)]
    for kernel in compile_kernels(builds, cache=tmp_path):
        assert isinstance(kernel, Compiled), kernel
        assert kernel.spill_bytes == 0 and not kernel.warnings and kernel.shared_bytes <= SM_90, str(kernel)
        assert {"24", str(REGISTERS)} <= set(re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32\s+(\d+)", kernel.ptx))
        assert "cp.async.bulk.tensor" in kernel.ptx and "ttg.warp_specialize" in kernel.ttgir
        assert kernel.ptx.count("wgmma.mma_async") == 8  # two consumers, four products of 16 of 64: none twice
        assert kernel.num_warps == 12


@pytest.mark.parametrize(
    ("columns", "tiles"), [(2048, WIDE), (1408, NARROW), (4096, WIDE), (384, NARROW), (8, NARROW), (7168, WIDE)]
)
def test_tiles_are_wide_where_that_computes_little_for_nothing(columns, tiles):
    assert tiles_for(columns) == tiles
    computed = -(-columns // tiles.columns) * tiles.columns
    assert computed <= 1.04 * -(-columns // 128) * 128


def test_what_the_copy_engine_cannot_read_is_left_to_the_portable_kernels(monkeypatch):
    monkeypatch.setattr(hopper, "_on_hopper", lambda x: True)
    memory = torch.empty(1 << 16, dtype=torch.bfloat16)
    good = memory[: 24 * 16].view(24, 16)
    assert hopper.takes(good) and hopper.takes(memory[: 2 * 24 * 16].view(2, 24, 16).transpose(1, 2))
    assert not hopper.takes(memory[: 24 * 12].view(24, 12))  # rows of 24 bytes
    assert not hopper.takes(memory[1 : 24 * 16 + 1].view(24, 16))  # begins between
    assert not hopper.takes(memory[: 2 * 20 * 16].view(2, 20, 16))  # the result's rows would have 40 bytes
    assert not hopper.takes(good, memory[: 24 * 32].view(24, 32)[:, ::2])
    assert not hopper.takes(memory[:24, None].expand(24, 16))


def test_tiles_are_for_experts_that_have_many_rows_and_only_on_hopper(monkeypatch):
    x = torch.empty(4, 8, dtype=torch.bfloat16)
    assert hopper.tile_rows(x, 10**6, 8) is None and not hopper.takes(x)
    monkeypatch.setattr(hopper, "_on_hopper", lambda x: True)
    assert hopper.tile_rows(x, 16 * 8, 8) is None and hopper.tile_rows(x, 16 * 8 + 1, 8) == BLOCK_M
