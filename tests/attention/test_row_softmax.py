"""The Triton row softmax: in the interpreter under the sanitizer, on a GPU, and compiled for Hopper without one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.hardware import sanitizer
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.tier import interpreting, triton_device, triton_installed
from tests.attention.sample import examples, sample

if not triton_installed():
    pytest.skip("Triton is not installed here", allow_module_level=True)

from llmsys.attention.row_softmax import LARGEST_BLOCK, softmax_kernel, softmax_rows  # noqa: E402

DEVICE = triton_device()
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("Triton compiles in this process, and there is no GPU", allow_module_level=True)
DTYPES = [torch.float32, torch.float16] + ([] if interpreting() else [torch.bfloat16])


def softmax(x):
    return torch.softmax(x.double(), dim=-1).nan_to_num(0)  # a row of -inf is a row of zeros here


@settings(deadline=None, max_examples=examples(60))
@given(
    x=st.lists(st.one_of(st.floats(-1e4, 1e4, width=32), st.just(-math.inf)), min_size=1, max_size=70),
    rows=st.integers(1, 3),
    block=st.sampled_from([None, 1, 2, 16, 64, 128]),
)
def test_any_row_in_tiles_of_any_size_without_touching_other_memory(x, rows, block):
    x = torch.tensor([x] * rows, device=DEVICE).roll(1, dims=0)
    with sanitizer.watch(x=x) as report:
        y = softmax_rows(x, block=block)
    torch.testing.assert_close(y.double(), softmax(x), atol=1e-6, rtol=1e-5)
    assert report.ok, report
    if sanitizer.available():
        size = x.numel() * 4
        assert report.bytes_loaded == {"x": 2 * size} and report.bytes_stored == {"y_ptr": size}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (5, 1), (3, 17), (2, 3, 31), (0, 4), (4, 0), (1, 257)])
def test_softmax_of_any_shape_and_dtype(shape, dtype):
    x = torch.randn(shape, device=DEVICE).to(dtype)
    y = softmax_rows(x, block=16 if x.numel() else None)
    assert y.shape == x.shape and y.dtype == dtype
    error = (y.double() - softmax(x)).abs().max().item() if x.numel() else 0.0
    plain = (torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)).double()
    allowed = (plain - softmax(x)).abs().max().item() if x.numel() else 0.0
    assert error <= 2 * allowed + 1e-6  # PERFORMANCE's rule: at most twice the naive computation's error


def test_rows_with_gaps_are_read_in_place():
    wide = torch.full((4, 64), math.nan, device=DEVICE)  # what is not the row's is poison
    wide[:, 8:45] = torch.randn(4, 37, device=DEVICE)
    x = wide[:, 8:45]
    torch.testing.assert_close(softmax_rows(x, block=16).double(), softmax(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(softmax_rows(x.mT).double(), softmax(x.mT), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(softmax_rows(wide[::2, 8:45]).double(), softmax(x[::2]), atol=1e-6, rtol=1e-5)


def test_the_launcher_takes_another_kernel():
    launched = []

    class Spy:
        def __getitem__(self, grid):
            launched.append(grid)
            return softmax_kernel[grid]

    x = torch.randn(3, 5, device=DEVICE)
    torch.testing.assert_close(softmax_rows(x, kernel=Spy(), block=4), softmax_rows(x))
    assert launched == [(3,)]


@pytest.mark.parametrize(
    ("argument", "options", "named"),
    [
        (torch.randn(3).double(), {}, "x must be float32, float16 or bfloat16, got torch.float64"),
        (torch.tensor(1.0), {}, "at least one dimension"),
        ([1.0], {}, "x must be a tensor"),
        (torch.randn(3, device="meta"), {}, "x must be on"),
        (torch.randn(3), {"block": 12}, "block must be a power of two"),
        (torch.randn(3), {"block": 0}, "block must be a power of two"),
    ],
)
def test_wrong_arguments_are_named(argument, options, named):
    if isinstance(argument, torch.Tensor) and argument.device.type == "cpu":
        argument = argument.to(DEVICE)
    with pytest.raises(ValueError, match=named):
        softmax_rows(argument, **options)


@pytest.mark.skipif(not interpreting(), reason="compiled kernels take bfloat16; this is about the interpreter")
def test_bfloat16_is_refused_where_it_would_be_silently_wrong():
    with pytest.raises(ValueError, match="bfloat16.*silently gets wrong"):
        softmax_rows(torch.randn(2, 3).bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (7, 1000), (3, 16385), (2, 128_256), (5000, 257), (2, 1 << 20)])
def test_on_a_gpu_it_errs_at_most_twice_as_much_as_torch(rows, n, dtype):
    torch.manual_seed(n)
    x = (torch.randn(rows, n, device="cuda") * 10).to(dtype)
    y = softmax_rows(x)
    error = (y.double() - softmax(x)).abs().max().item()
    allowed = (torch.softmax(x, -1).double() - softmax(x)).abs().max().item()
    assert error <= 2 * allowed + 1e-6
    huge = torch.randn(rows, n, device="cuda") * 1e4
    torch.testing.assert_close(softmax_rows(huge).double(), softmax(huge), atol=1e-6, rtol=1e-4)


def test_compiled_for_hopper_it_spills_nothing_and_needs_little_shared_memory(tmp_path):
    sizes = sample([(1, 1), (1024, 4), (4096, 16), (LARGEST_BLOCK, 32)], 1, always=[(LARGEST_BLOCK, 32)])
    strides = {"x_row_stride": "i32", "y_row_stride": "i32", "n_cols": "i32"}
    builds = [
        Build(softmax_kernel, {"x_ptr": dtype, "y_ptr": dtype} | strides, {"BLOCK": block}, num_warps=warps)
        for block, warps in sizes
        for dtype in ("*fp32", "*bf16")
    ]
    for kernel in compile_kernels(builds, cache=tmp_path):
        assert isinstance(kernel, Compiled), kernel
        assert kernel.spill_bytes == 0 and kernel.shared_bytes <= 1024, kernel
