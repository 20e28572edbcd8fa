"""Every configuration that is shipped: compiled for its GPU, without one; and autotuning, which remembers."""

import json

import pytest
import torch

from llmsys.attention.flash import forward, kernels
from llmsys.attention.flash import tiles as flash_tiles
from llmsys.attention.flash.tiles import DECODE, LARGE, SMALL, TABLES, TileConfig, block_of, tiles_for, tuned_tiles
from llmsys.hardware.compiler import compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.occupancy import SMS
from llmsys.hardware.tier import interpreting

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def builds(target, dtype, *, G=2, Tq=512):
    recorder = Recorder(kernels.flash_forward_kernel, target=target)
    for D in (16, 64, 96, 128, 256):
        for causal in (False, True):
            q = torch.empty(2, 2 * G, Tq, D, dtype=dtype, device="meta")
            k = torch.empty(2, 2, 512, D, dtype=dtype, device="meta")
            tiles = tiles_for(D, q.element_size(), G * Tq, target)
            forward.launch(q, k, k, causal, 0.1, "ieee", tiles, recorder)
    return recorder.builds


@HALF
def test_compiled_for_hopper_every_configuration_uses_the_tensor_cores_and_spills_nothing(dtype):
    for compiled in compile_kernels(builds("sm_90", dtype)):
        assert compiled.wgmma, compiled
        assert compiled.spill_bytes == 0 and not compiled.warnings, compiled
        assert compiled.occupancy().programs >= 1, compiled


def test_compiled_for_hopper_decoding_fits():
    for compiled in compile_kernels(builds("sm_90", torch.bfloat16, G=4, Tq=1)):
        assert compiled.spill_bytes == 0 and compiled.occupancy().programs >= 1, compiled


@pytest.mark.parametrize("target", ["sm_80", "sm_89"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_gpus_have_room_for_their_tables(target, dtype):
    for compiled in compile_kernels(builds(target, dtype)):
        assert compiled.shared_bytes <= SMS[target].shared_bytes_per_program, compiled


def test_every_table_has_tiles_for_every_head():
    for target in (*TABLES, "sm_75"):
        for itemsize in (2, 4):
            for D in (1, 64, 65, 128, 129, 256):
                tiles = tiles_for(D, itemsize, 4096, target)
                assert all(n & (n - 1) == 0 for n in (tiles.block_m, tiles.block_n, tiles.num_warps))
    assert tiles_for(64, 2, 3) == DECODE
    assert {id(table) for table in TABLES.values()} == {id(LARGE), id(SMALL)}


def test_a_block_holds_the_head():
    assert [block_of(D) for D in (1, 16, 17, 64, 65, 256)] == [16, 16, 32, 64, 128, 256]


def test_without_a_gpu_autotuning_is_the_table():
    if not interpreting():
        pytest.skip("there is a GPU here")
    q = torch.randn(1, 2, 5, 8)
    assert tuned_tiles(q, q, q, True, pytest.fail) == tiles_for(8, 4, 5)


def test_what_was_measured_is_remembered(tmp_path, monkeypatch):
    best, cache = TileConfig(64, 128, 4, 2), tmp_path / "tiles.json"
    ran = []

    def seconds(call):
        call()
        if ran[-1].block_m == 128:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if ran[-1] == best else 2.0

    monkeypatch.setattr(flash_tiles, "_seconds", seconds)
    monkeypatch.setattr(flash_tiles, "_key", lambda q, k, v, causal: f"{q.shape[2]} {causal}")
    monkeypatch.setattr(flash_tiles, "target_of", lambda device: "sm_90")
    q = FakeGPU(1, 2, 100, 64)
    assert tuned_tiles(q, q, q, True, ran.append, cache=cache) == best
    assert len(ran) > 5
    ran.clear()
    assert tuned_tiles(q, q, q, True, ran.append, cache=cache) == best and not ran
    cache.write_text("not JSON")  # it is only a cache
    assert tuned_tiles(q, q, q, True, ran.append, cache=cache) == best and ran
    assert json.loads(cache.read_text()) == {"100 True": [64, 128, 4, 2]}


class FakeGPU:
    """As much of a tensor as autotuning looks at."""

    is_cuda, device = True, None

    def __init__(self, *shape):
        self.shape = shape

    def numel(self):
        return 1

    def element_size(self):
        return 2
