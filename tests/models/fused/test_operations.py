"""The fused operations: each equals its plain form, touches its own memory alone, and is compiled for Hopper."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.rotary import rotation
from llmsys.hardware import sanitizer
from llmsys.hardware.compiler import Compiled, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from llmsys.models.fused import add_norm, step_rotation, swiglu
from llmsys.models.modules import RMSNorm
from tests.attention.sample import examples
from tests.support.waiting import nothing_waits

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
from llmsys.models.fused.kernels import add_norm_kernel, rotation_kernel, swiglu_kernel  # noqa: E402

DEVICE = triton_device()
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("Triton compiles in this process, and there is no GPU", allow_module_level=True)
DTYPES = [torch.float32, torch.float16] + ([] if interpreting() else [torch.bfloat16])
BF16 = torch.bfloat16
DIVISORS = (1.0, 1.0, 2.0, 8.0)


def plain_add_norm(x, y, weight, eps):
    norm = RMSNorm(x.shape[-1], eps)
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    x = x if y is None else x + y
    return x, norm(x)


def plain_swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def assert_errs_no_more_than_twice(got, plain, exact):
    """Than the plain form in the same precision, and a tiny term."""
    assert got.dtype == plain.dtype and got.shape == exact.shape
    error, allowed = (got.float() - exact).abs().max(), (plain.float() - exact).abs().max()
    assert error.isfinite() and error <= 2 * allowed + 2e-6 * (1 + exact.abs().max()), (error, allowed)


def numbers(seed, *shape, scale=1.0, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE, dtype)


@settings(max_examples=examples(40), deadline=None)
@given(
    rows=st.sampled_from([(1,), (3,), (2, 2)]), C=st.sampled_from([1, 2, 13, 16, 48, 576]), added=st.booleans(),
    scale=st.sampled_from([1e-4, 1.0, 100.0]), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_a_residual_is_added_in_place_and_the_sum_normalised(rows, C, added, scale, dtype, seed):
    x, y = (numbers(seed + i, *rows, C, scale=scale, dtype=dtype) for i in range(2))
    weight, y = numbers(seed + 2, C, dtype=dtype), y if added else None
    sum_, plain = plain_add_norm(x, y, weight, 1e-5)
    _, exact = plain_add_norm(x.float(), y if y is None else y.float(), weight.float(), 1e-5)
    own = x.clone()
    got = add_norm(own, y, weight, 1e-5)
    assert torch.equal(own, sum_)
    assert_errs_no_more_than_twice(got, plain, exact)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # 1 / (1 + ∞) is the 0 that is meant
@settings(max_examples=examples(40), deadline=None)
@given(
    rows=st.sampled_from([(1,), (3,), (2, 2)]), I=st.sampled_from([1, 2, 13, 16, 48, 1025]),
    scale=st.sampled_from([1e-4, 1.0, 30.0]), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_the_gated_silu_is_silu_of_the_gate_times_up(rows, I, scale, dtype, seed):  # noqa: E741
    gate_up = numbers(seed, *rows, 2 * I, scale=scale, dtype=dtype)
    assert_errs_no_more_than_twice(swiglu(gate_up), plain_swiglu(gate_up), plain_swiglu(gate_up.float()))


@settings(max_examples=examples(30), deadline=None)
@given(
    size=st.sampled_from([2, 8, 12, 64]), base=st.sampled_from([1e4, 1e6]), stretched=st.booleans(),
    positions=st.lists(st.integers(0, 200_000), min_size=1, max_size=4), rows=st.sampled_from([None, 1, 2]),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_a_steps_angles_are_those_of_rotation(size, base, stretched, positions, rows, dtype):
    divisors = (DIVISORS * size)[: size // 2] if stretched else None
    at = torch.tensor(positions, dtype=torch.int32, device=DEVICE)
    at = at if rows is None else at.expand(rows, -1)
    expected = rotation(at, size, base=base, divisors=divisors, dtype=dtype)
    got = step_rotation(at, size, base=base, divisors=divisors, dtype=dtype)
    assert not got.interleaved and got.size == size
    for found, right in ((got.cos, expected.cos), (got.sin, expected.sin)):
        assert found.dtype == dtype and found.shape == right.shape
        # The same angles, and cosines that differ in the last bit at most: of fp32, or of what it is rounded to.
        torch.testing.assert_close(found, right, atol=2e-7, rtol=1.01 * torch.finfo(dtype).eps)


def test_rows_may_lie_apart_and_only_x_is_changed():
    wide = numbers(1, 5, 3 * 12)
    before = wide.clone()
    y, x, weight = wide[:, 12:24], numbers(2, 5, 12), numbers(3, 12)
    expected = plain_add_norm(x, y, weight, 1e-6)
    got = add_norm(x, y, weight, 1e-6)
    torch.testing.assert_close((x, got), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(swiglu(wide[:, 12:]), plain_swiglu(wide[:, 12:]), atol=1e-6, rtol=1e-5)
    columns = numbers(4, 6, 5).T
    torch.testing.assert_close(swiglu(columns), plain_swiglu(columns), atol=1e-6, rtol=1e-5)
    assert torch.equal(wide, before)
    assert add_norm(x[:0], None, weight, 1e-6).shape == (0, 12) and swiglu(wide[:0]).shape == (0, 18)


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
def test_each_byte_is_read_once_and_written_once_and_none_beyond():
    x, y, weight = numbers(1, 3, 13), numbers(2, 3, 13), numbers(3, 13)
    with sanitizer.watch(x=x, y=y) as report:
        h = add_norm(x, y, weight, 1e-5)
        swiglu(torch.cat((h, x), dim=1))
        step_rotation(torch.arange(3, dtype=torch.int32), 12, base=1e4, dtype=torch.float32)
    assert report.ok and not report.undecided, report
    assert report.bytes_loaded["x"] == report.bytes_loaded["y"] == report.bytes_stored["x"] == x.nbytes
    assert report.bytes_stored["h_ptr"] == report.bytes_stored["out_ptr"] == x.nbytes
    assert report.bytes_loaded["gate_up_ptr"] == 2 * x.nbytes
    assert report.bytes_stored["cos_ptr"] == report.bytes_stored["sin_ptr"] == 3 * 12 * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: add_norm(x.T, None, x[0], 1e-5), "x must be contiguous"),
        (lambda x: add_norm(x, x[:1], x[0], 1e-5), r"y must be \(4, 6\) as x is, got \(1, 6\)"),
        (lambda x: add_norm(x, None, x[:, 0], 1e-5), r"weight must be \(6,\), a number for each"),
        (lambda x: swiglu(x[:, :5]), "gate_up must have as many elements for the gate as for up, got 5 in all"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(numbers(1, 4, 6))


@pytest.mark.skipif(not interpreting(), reason="in the interpreter alone bfloat16 goes wrong")
def test_what_goes_wrong_in_the_interpreter_is_refused():
    x = torch.ones(2, 8, dtype=BF16)
    for call in (lambda: add_norm(x, None, x[0], 1e-5), lambda: swiglu(x)):
        with pytest.raises(ValueError, match="bfloat16 goes wrong in Triton's interpreter"):
            call()


def empty(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_compiled_for_hopper_nothing_is_spilled_and_an_sm_has_bytes_enough_on_their_way_sixteen_at_a_time(tmp_path):
    recorders = {}
    for C in (576, 1024, 4096, 16384):
        recorders[f"add_norm {C}"] = recorder = Recorder(add_norm_kernel)
        add_norm(empty(9, C), empty(9, C), empty(C), 1e-5, kernel=recorder)
    for I in (1536, 3072):  # noqa: E741
        recorders[f"swiglu {I}"] = recorder = Recorder(swiglu_kernel)
        swiglu(empty(9, 2 * I), kernel=recorder)
    recorders["rotation"] = recorder = Recorder(rotation_kernel)
    step_rotation(empty(9, dtype=torch.int32), 128, base=1e6, dtype=BF16, kernel=recorder)
    kernels = compile_kernels([recorder.builds[0] for recorder in recorders.values()], cache=tmp_path)
    for name, kernel in zip(recorders, kernels, strict=True):
        assert isinstance(kernel, Compiled) and kernel.spill_bytes == 0 and not kernel.warnings, (name, str(kernel))
        if name != "rotation":
            assert "ld.global.v4" in kernel.ptx and "st.global.v4" in kernel.ptx, name
            elements = min(int(name.split()[1]), 1024) if name.startswith("swiglu") else int(name.split()[1])
            assert kernel.occupancy().programs * 2 * elements * 2 >= 24 * 1024, (name, str(kernel))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 7, 300])
@pytest.mark.parametrize(("C", "I"), [(1024, 3072), (576, 1536), (4096, 14336), (65, 33)])
def test_on_a_gpu_large_rows_err_at_most_twice_as_much_as_the_plain_form_and_nothing_waits(dtype, N, C, I):  # noqa: E741
    x, y, weight = (numbers(i, *shape, dtype=dtype) for i, shape in enumerate(((N, C), (N, C), (C,))))
    gate_up = numbers(3, N, 2 * I, dtype=dtype)
    at = torch.arange(100_000, 100_000 + N, dtype=torch.int32, device=DEVICE)
    sum_, plain = plain_add_norm(x, y, weight, 1e-5)
    _, exact = plain_add_norm(x.float(), y.float(), weight.float(), 1e-5)

    def all_three():
        own = x.clone()
        return own, add_norm(own, y, weight, 1e-5), swiglu(gate_up), step_rotation(at, 128, base=1e6, dtype=dtype)

    all_three()  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        own, h, a, turn = all_three()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(own, sum_)
    assert_errs_no_more_than_twice(h, plain, exact)
    assert_errs_no_more_than_twice(a, plain_swiglu(gate_up), plain_swiglu(gate_up.float()))
    expected = rotation(at, 128, base=1e6, dtype=dtype)
    torch.testing.assert_close(turn.cos, expected.cos, atol=2e-7, rtol=1.01 * torch.finfo(dtype).eps)
    torch.testing.assert_close(turn.sin, expected.sin, atol=2e-7, rtol=1.01 * torch.finfo(dtype).eps)


def test_what_surrounds_the_kernels_waits_for_nothing():
    recorder = Recorder(add_norm_kernel)
    with nothing_waits():
        add_norm(empty(9, 64), empty(9, 64), empty(64), 1e-5, kernel=recorder)
        swiglu(empty(9, 64), kernel=Recorder(swiglu_kernel))
        step_rotation(empty(9, dtype=torch.int32), 16, base=1e4, dtype=BF16, kernel=Recorder(rotation_kernel))
    assert recorder.grids == [(9,)]
