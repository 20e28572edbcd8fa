"""Recorded launches: the compiler is asked for what Triton would compile at a launch."""

import ctypes
import importlib.util

import pytest
import torch

from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import load_triton

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)
triton, tl = load_triton()


@triton.jit
def saxpy(x_ptr, y_ptr, a, n, stride, ROUND: tl.constexpr, BLOCK: tl.constexpr = 128):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at * stride, mask=at < n)
    tl.store(y_ptr + at, (a * x).to(tl.float16) if ROUND else a * x, mask=at < n)


def launch(x, y, a, *, kernel=saxpy, rounded=False, stride=1, **options):
    return kernel[(-(-x.numel() // 128),)](x, y, a, x.numel(), stride, ROUND=rounded, **options)


def test_arguments_get_the_types_that_triton_gives_them():
    recorder = Recorder(saxpy, target="sm_80")
    x = torch.empty(1000, device="meta", dtype=torch.bfloat16)
    launch(x, x.float(), 0.5, kernel=recorder, num_warps=2, num_stages=5)
    launch(x[:960], x, 2**31, kernel=recorder, stride=48)
    one, two = recorder.builds
    assert one.signature == {"x_ptr": "*bf16", "y_ptr": "*fp32", "a": "fp32", "n": "i32"}
    assert one.constants == {"stride": 1, "ROUND": False}
    assert (one.num_warps, one.num_stages, one.target) == (2, 5, "sm_80")
    assert two.signature == {"x_ptr": "*bf16", "y_ptr": "*bf16", "a": "i64:16", "n": "i32:16", "stride": "i32:16"}
    assert (two.num_warps, two.num_stages) == (4, 3)
    assert recorder.grids == [(8,), (8,)]
    with pytest.raises(ValueError, match="launch the kernel once to ask for it so; it did 2 times"):
        recorder.compiled()


def test_a_recorded_launch_can_be_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    recorder = Recorder(saxpy)
    x = torch.empty(1024, device="meta")
    launch(x, x, 0.5, kernel=recorder)
    compiled = recorder.compiled()
    assert compiled.name == "saxpy" and compiled.spill_bytes == 0 and compiled.shared_bytes == 0


def test_arguments_that_no_kernel_takes_are_refused():
    recorder = Recorder(saxpy)
    with pytest.raises(ValueError, match="a must be a tensor, a number or None for a kernel, got str"):
        launch(torch.empty(3), torch.empty(3), "half", kernel=recorder)
    with pytest.raises(TypeError, match="ROUND"):
        recorder[(1,)](torch.empty(3), torch.empty(3), 1.0, 3, 1)


class Caught:
    """A kernel that is launched, and whose handles are kept."""

    def __init__(self, kernel):
        self.kernel, self.handles = kernel, []

    def __getitem__(self, grid):
        return lambda *args, **options: self.handles.append(self.kernel[grid](*args, **options))


def programs_by_the_driver(handle, warps: int) -> int:
    """NVIDIA's own answer, for the GPU that is here."""
    handle._init_handles()
    driver, programs = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    ask = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
    shared = ctypes.c_size_t(handle.metadata.shared)
    assert ask(ctypes.byref(programs), ctypes.c_void_p(handle.function), ctypes.c_int(32 * warps), shared) == 0
    return programs.value


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2, 16])
def test_on_a_gpu_a_recorded_launch_compiles_to_the_kernel_that_runs(stride):
    x, y = torch.randn(16_000, device="cuda"), torch.empty(1000, device="cuda", dtype=torch.float16)
    recorder = Recorder(saxpy, target="sm_{}{}".format(*torch.cuda.get_device_capability()))
    launch(x[:1000], y, 0.5, kernel=recorder, stride=stride, rounded=True)
    ran = launch(x[:1000], y, 0.5, stride=stride, rounded=True)
    compiled = recorder.compiled()
    assert compiled.occupancy().programs == programs_by_the_driver(ran, 4)
    assert (compiled.registers, compiled.shared_bytes) == (ran.n_regs, ran.metadata.shared)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("D", "tiles"), [(64, (64, 64, 4, 3)), (64, (32, 32, 8, 2)), (64, (64, 64, 1, 2)), (128, (128, 64, 8, 2))]
)
def test_on_a_gpu_the_recorded_flash_kernel_has_the_registers_and_occupancy_of_the_one_that_runs(D, tiles):
    from llmsys.attention.flash import forward
    from llmsys.attention.flash.kernels import flash_forward_kernel

    q = torch.randn(1, 2, 256, D, device="cuda", dtype=torch.bfloat16)
    caught = Caught(flash_forward_kernel)
    recorder = Recorder(flash_forward_kernel, target="sm_{}{}".format(*torch.cuda.get_device_capability()))
    for kernel in (caught, recorder):
        forward.launch(q, q, q, True, 0.1, "ieee", forward.TileConfig(*tiles), kernel)
    (ran,), compiled = caught.handles, recorder.compiled()
    assert compiled.occupancy().programs == programs_by_the_driver(ran, tiles[2])
    assert (compiled.registers, compiled.shared_bytes) == (ran.n_regs, ran.metadata.shared)
