"""The tiles of the flash kernel: the shipped ones compile for their GPUs, and autotuning keeps what it measured."""

import itertools
import json

import pytest
import torch

from llmsys.attention.flash import forward, kernels
from llmsys.attention.flash import tiles as flash_tiles
from llmsys.attention.flash.tiles import DECODE, LARGE, SMALL, TABLES, TileConfig, block_of, tiles_for, tuned_tiles
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.occupancy import SMS
from llmsys.hardware.tier import interpreting
from tests.attention.sample import FULL, sample

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HEADS, MASKS = (16, 64, 96, 128, 256), (False, True)


def build(target: str, dtype: torch.dtype, D: int, causal: bool, *, G: int = 2, Tq: int = 512) -> Build:
    """What a launch with the table's tiles would compile."""
    recorder = Recorder(kernels.flash_forward_kernel, target=target)
    q = torch.empty(2, 2 * G, Tq, D, dtype=dtype, device="meta")
    k = torch.empty(2, 2, 512, D, dtype=dtype, device="meta")
    forward.launch(q, k, k, causal, 0.1, "ieee", tiles_for(D, q.element_size(), G * Tq, target), recorder)
    return recorder.builds[0]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, list[Compiled]]:
    """Kernels for Hopper (prompts, and decoding one token) and for other GPUs, all through one compiler's process.

    The largest head needs the most registers and shared memory: it is always among them. In float32 on sm_80 it takes
    as long to compile as ten others, and is left to the full form.
    """
    hopper = itertools.product(["sm_90"], (FP16, BF16), HEADS, MASKS)
    others = [
        case
        for case in itertools.product(("sm_80", "sm_89"), (BF16, FP32), HEADS, MASKS)
        if FULL or case[:3] != ("sm_80", FP32, 256)
    ]
    largest = [("sm_80", BF16, 256, False), ("sm_89", BF16, 256, False), ("sm_89", FP32, 256, False)]
    builds = [
        *(("prompt", build(*case)) for case in sample(hopper, 2, always=[("sm_90", BF16, 256, True)])),
        *(
            ("decoding", build("sm_90", BF16, D, causal, G=4, Tq=1))
            for D, causal in sample(itertools.product(HEADS, MASKS), 1, always=[(256, True)])
        ),
        *(("others", build(*case)) for case in sample(others, 1, always=largest)),
    ]
    kernels = compile_kernels([each for _, each in builds], cache=tmp_path_factory.mktemp("compiled"))
    found = {"prompt": [], "decoding": [], "others": []}
    for (name, _), kernel in zip(builds, kernels, strict=True):
        assert isinstance(kernel, Compiled), kernel
        found[name].append(kernel)
    return found


def test_compiled_for_hopper_the_kernel_uses_the_tensor_cores_and_spills_nothing(compiled):
    for kernel in compiled["prompt"]:
        assert kernel.wgmma, kernel
        assert kernel.spill_bytes == 0 and not kernel.warnings, kernel
        assert kernel.occupancy().programs >= 1, kernel


def test_compiled_for_hopper_the_kernel_for_decoding_fits_on_an_sm(compiled):
    for kernel in compiled["decoding"]:
        assert kernel.spill_bytes == 0 and kernel.occupancy().programs >= 1, kernel


def test_other_gpus_have_shared_memory_for_their_tiles(compiled):
    for kernel in compiled["others"]:
        assert kernel.shared_bytes <= SMS[kernel.target].shared_bytes_per_program, kernel


def test_every_table_has_tiles_for_every_head():
    for target in (*TABLES, "sm_75"):
        for itemsize in (2, 4):
            for D in (1, 64, 65, 128, 129, 256):
                tiles = tiles_for(D, itemsize, 4096, target)
                assert all(n & (n - 1) == 0 for n in (tiles.block_m, tiles.block_n, tiles.num_warps))
    assert tiles_for(64, 2, 3) == DECODE
    assert {id(table) for table in TABLES.values()} == {id(LARGE), id(SMALL)}


def test_a_tile_is_as_wide_as_the_next_power_of_two_above_the_head():
    assert [block_of(D) for D in (1, 16, 17, 64, 65, 256)] == [16, 16, 32, 64, 128, 256]


def test_without_a_gpu_autotuning_measures_nothing_and_takes_the_table():
    if not interpreting():
        pytest.skip("there is a GPU here")
    q = torch.randn(1, 2, 5, 8)
    assert tuned_tiles(q, q, q, True, pytest.fail) == tiles_for(8, 4, 5)


def test_autotuning_measures_once_and_keeps_the_result(tmp_path, monkeypatch):
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
