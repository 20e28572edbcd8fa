"""The sanitizer names what a kernel does to memory that is not its own, survives it, and leaves nothing behind."""

import dataclasses

import pytest
import torch

from llmsys.hardware import sanitizer
from llmsys.hardware.tier import load_triton, triton_installed

if not (triton_installed() and sanitizer.available()):
    pytest.skip("the sanitizer watches Triton's interpreter, which does not run here", allow_module_level=True)
triton, tl = load_triton()


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, MASK: tl.constexpr):
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASK:
        tl.store(y_ptr + cols, tl.load(x_ptr + cols, mask=cols < n), mask=cols < n)
    else:
        tl.store(y_ptr + cols, tl.load(x_ptr + cols))


@triton.jit
def rows_kernel(x_ptr, y_ptr, row_stride, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * row_stride + tl.arange(0, BLOCK)
    tl.store(y_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + offsets))  # every program stores to the same place


@triton.jit
def wild_kernel(x_ptr, y_ptr, far):
    tl.store(y_ptr, tl.load(x_ptr + far))
    tl.store(y_ptr - far, 1.0)


@triton.jit
def sum_kernel(x_ptr, y_ptr, far, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    tl.atomic_add(y_ptr + far, tl.sum(x, axis=0))


@triton.jit
def descriptor_kernel(x, y, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK
    y.store((row, 0), x.load((row, 0)))  # a descriptor checks its own bounds


@triton.jit
def block_pointer_kernel(x_ptr, y_ptr, rows, cols, BLOCK: tl.constexpr, CHECK: tl.constexpr):
    at = (tl.program_id(0) * BLOCK, 0)
    x = tl.make_block_ptr(x_ptr, (rows, cols), (cols, 1), at, (BLOCK, BLOCK), (1, 0))
    y = tl.make_block_ptr(y_ptr, (rows, cols), (cols, 1), at, (BLOCK, BLOCK), (1, 0))
    if CHECK:
        tl.store(y, tl.load(x, boundary_check=(0, 1)), boundary_check=(0, 1))
    else:
        tl.store(y, tl.load(x))


@triton.jit
def add_kernel(xs, y_ptr, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    tl.store(y_ptr + cols, tl.load(xs[0] + cols) + tl.load(xs[1] + cols))


@triton.jit
def product_kernel(
    a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a, b = tl.load(a_ptr + m * K + k[None, :]), tl.load(b_ptr + k[:, None] * N + n)
    if UP:
        a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(c_ptr + m * N + n, tl.dot(a, b, input_precision=PRECISION))


@triton.jit
def compare_and_swap_kernel(x_ptr, offset):
    tl.atomic_cas(x_ptr + offset, 0, 1)


def test_a_clean_kernel_is_clean_unchanged_and_counted_to_the_byte():
    x, y = torch.randn(37), torch.zeros(37)
    with sanitizer.watch(x=x) as report:
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=True)
    assert report.ok and report.findings == []
    assert torch.equal(x, y)
    assert report.bytes_loaded == {"x": 37 * 4} and report.bytes_stored == {"y_ptr": 37 * 4}
    assert report.programs == 3 and "no access outside" in str(report)


def test_a_forgotten_mask_is_named_by_kernel_program_lane_and_line():
    x, y = torch.randn(37), torch.zeros(37)
    with sanitizer.watch(x=x, y=y) as report:
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=False)
    load, store = report.findings
    assert load.kind == sanitizer.LOAD and store.kind == sanitizer.STORE
    assert load.kernel == "copy_kernel" and load.program == (2, 0, 0)
    assert load.lanes == tuple(range(5, 16)) and load.tensor == "x"
    assert "1 element past the end" in load.where and "tl.load(x_ptr + cols)" in load.source
    assert "program (2, 0, 0): load outside its tensor, 11 lanes, 1 element past the end of x" in str(report)
    assert torch.equal(x, y), "what was inside has been copied all the same"


@triton.jit
def masked_sum_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, OTHER: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + cols, mask=cols < n, other=0.0) if OTHER else tl.load(x_ptr + cols, mask=cols < n)
    tl.store(y_ptr, tl.sum(x.to(tl.float32), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masked_lanes_that_are_given_no_value_load_nan(dtype):
    x, y = torch.ones(5, dtype=dtype), torch.zeros(1)
    for other, expected in ((True, 5.0), (False, float("nan"))):
        with sanitizer.watch(x=x, y=y) as report:
            masked_sum_kernel[(1,)](x, y, 5, BLOCK=8, OTHER=other)
        assert report.ok
        torch.testing.assert_close(y, torch.tensor([expected]), equal_nan=True)


def test_neighbouring_memory_stays_what_it_was():
    memory = torch.zeros(64)
    x, y = torch.ones(37), memory[:37]
    with sanitizer.watch() as report:
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=False)
    assert not report.ok and (memory[37:] == 0).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_lane_that_leaves_its_tensor_is_reported_even_where_another_tensor_begins(order):
    memory = torch.arange(64.0)
    # Two storages, side by side in one piece of memory: past the end of the one, the other begins.
    halves = [torch.from_numpy(half) for half in (memory.numpy()[:32], memory.numpy()[32:])]
    x, y = (halves[i] for i in order)
    with sanitizer.watch(x=x, y=y) as report:
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=True)
    assert [(f.kind, f.tensor, f.program) for f in report.findings] == [
        (sanitizer.LOAD, "x", (2, 0, 0)),
        (sanitizer.STORE, "y", (2, 0, 0)),
    ]
    assert all(f.lanes == tuple(range(5)) and f.where == "1 element past the end of" for f in report.findings)
    assert report.bytes_loaded == {"x": 128} and report.bytes_stored == {"y": 128}


def test_a_wild_pointer_does_not_kill_the_process():
    x, y = torch.randn(4), torch.zeros(4)
    with sanitizer.watch() as report:
        wild_kernel[(1,)](x, y, 1 << 40)
    assert [finding.kind for finding in report.findings] == [sanitizer.LOAD, sanitizer.STORE]
    assert (y == 0).all()


def test_the_gap_between_the_rows_of_a_slice_is_outside():
    x, y = torch.randn(4, 32)[:, :16], torch.empty(32)
    with sanitizer.watch() as report:
        copy_kernel[(1,)](x, y, 32, BLOCK=32, MASK=True)
    (finding,) = report.findings
    assert finding.lanes == tuple(range(16, 32)) and "between the elements of x_ptr" in str(finding)


def test_a_wrong_stride_is_found_where_it_leaves_the_tensor():
    x, y = torch.randn(4, 16), torch.empty(16)
    with sanitizer.watch(x=x) as report:
        rows_kernel[(4,)](x, y, 32, BLOCK=16)
    assert {f.program for f in report.findings if f.kind == sanitizer.LOAD} == {(2, 0, 0), (3, 0, 0)}


def test_two_programs_that_store_to_one_address_race_but_two_launches_do_not():
    x, y = torch.randn(2, 16), torch.empty(16)
    with sanitizer.watch(y=y) as report:
        rows_kernel[(2,)](x, y, 16, BLOCK=16)
    (finding,) = report.findings
    assert finding.kind == sanitizer.RACE and finding.program == (1, 0, 0) and finding.tensor == "y"
    assert "16 lanes stored to y where another program had stored" in str(finding)
    with sanitizer.watch(y=y) as report:
        rows_kernel[(1,)](x, y, 16, BLOCK=16)
        rows_kernel[(1,)](x, y, 16, BLOCK=16)
    assert report.ok


def test_a_store_and_a_later_load_in_place_are_no_race():
    x = torch.randn(32)
    with sanitizer.watch(x=x) as report:
        copy_kernel[(2,)](x, x, 32, BLOCK=16, MASK=True)
    assert report.ok and report.bytes_loaded == report.bytes_stored == {"x": 128}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8, torch.int64, torch.bool])
def test_any_dtype_is_counted_in_bytes(dtype):
    x, y = torch.ones(37).to(dtype), torch.zeros(37).to(dtype)
    with sanitizer.watch(x=x) as report:
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=True)
    assert report.ok and torch.equal(x, y) and report.bytes_loaded == {"x": x.nbytes}


def test_a_slice_that_is_expanded_still_has_gaps():
    x, y = torch.randn(2, 9)[:, ::2][:, None].expand(2, 50, 5), torch.empty(16)
    with sanitizer.watch(x=x) as report:
        copy_kernel[(1,)](x, y, 9, BLOCK=16, MASK=True)
    (finding,) = report.findings
    assert finding.lanes == (1, 3, 5, 7) and "at offset 1, between the elements of x" in str(finding)


def test_descriptors_are_watched():
    from triton.tools.tensor_descriptor import TensorDescriptor

    x, y = torch.randn(20, 20), torch.zeros(20, 20)
    with sanitizer.watch() as report:
        blocks = (TensorDescriptor.from_tensor(t, [16, 32]) for t in (x, y))
        descriptor_kernel[(2,)](*blocks, BLOCK=16)
    assert report.ok and torch.equal(x, y)
    assert report.bytes_loaded == {"x": x.nbytes} and report.bytes_stored == {"y": x.nbytes}


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_block_pointers_are_watched():
    x, y = torch.randn(20, 16), torch.zeros(20, 16)
    with sanitizer.watch() as report:
        block_pointer_kernel[(2,)](x, y, 20, 16, BLOCK=16, CHECK=True)
    assert report.ok and torch.equal(x, y) and report.bytes_loaded == {"x_ptr": x.nbytes}
    with sanitizer.watch() as report:
        block_pointer_kernel[(2,)](x, y, 20, 16, BLOCK=16, CHECK=False)
    assert [finding.kind for finding in report.findings] == [sanitizer.LOAD, sanitizer.STORE]
    assert report.findings[0].program == (1, 0, 0) and len(report.findings[0].lanes) == 12 * 16


def test_tensors_in_tuples_and_in_wrappers_belong_to_the_launch():
    a, b, y = torch.randn(16), torch.randn(16), torch.zeros(16)
    with sanitizer.watch(a=a, b=b) as report:
        add_kernel[(1,)]((a, b), y, BLOCK=16)
    assert report.ok and torch.equal(y, a + b) and report.bytes_loaded == {"a": 64, "b": 64}
    with sanitizer.watch() as report:
        copy_kernel[(1,)](triton.reinterpret(a.view(torch.int32), tl.float32), y, 16, BLOCK=16, MASK=True)
    assert report.ok and torch.equal(y, a)


def test_compare_and_swap_is_watched_and_stops_a_kernel_that_cannot_be_saved():
    x = torch.zeros(4, dtype=torch.int32)
    with sanitizer.watch() as report:
        compare_and_swap_kernel[(3,)](x, 1)
    assert report.ok and x.tolist() == [0, 1, 0, 0] and report.programs == 3
    with sanitizer.watch() as report, pytest.raises(Exception, match="atomic_cas outside its tensor"):
        compare_and_swap_kernel[(1,)](x, 1 << 40)
    assert [finding.kind for finding in report.findings] == [sanitizer.STORE]


@triton.jit
def indirect_kernel(addresses_ptr, y_ptr):
    address = tl.load(addresses_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(y_ptr + tl.program_id(0), tl.load(address))


def test_pointers_that_a_kernel_finds_in_memory_may_go_to_the_named_tensors():
    a, b, y = torch.randn(1), torch.randn(1), torch.zeros(2)
    addresses = torch.tensor([a.data_ptr(), b.data_ptr()])
    with sanitizer.watch(a=a, b=b) as report:
        indirect_kernel[(2,)](addresses, y)
    assert report.ok and torch.equal(y, torch.cat([a, b])) and report.bytes_loaded["a"] == 4
    with sanitizer.watch(a=a) as report:
        indirect_kernel[(2,)](addresses, y)
    (finding,) = report.findings
    assert finding.program == (1, 0, 0)


def test_programs_of_several_launches_add_up():
    x, y = torch.randn(37), torch.zeros(37)
    with sanitizer.watch() as report:
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=True)
        copy_kernel[(5, 2)](x, y, 0, BLOCK=16, MASK=True)
    assert report.programs == 13 and report.bytes_loaded["x_ptr"] == 37 * 4


def test_products_are_counted_by_the_type_of_what_is_multiplied():
    a, b, c = torch.randn(16, 64).half(), torch.randn(64, 32).half(), torch.zeros(16, 32)
    one = 16 * 32 * 64
    with sanitizer.watch() as report:
        product_kernel[(1,)](a, b, c, M=16, N=32, K=64, UP=False, PRECISION="tf32")
        product_kernel[(3,)](a, b, c, M=16, N=32, K=64, UP=True, PRECISION="ieee")
        product_kernel[(2,)](a, b, c, M=16, N=32, K=64, UP=True, PRECISION="tf32")
    assert report.multiply_adds == {"fp16": one, "fp32": 3 * one, "tf32": 2 * one}
    assert torch.allclose(c, a.float() @ b.float(), atol=1e-4)


def test_atomics_may_meet_but_not_go_astray():
    x, y = torch.ones(64), torch.zeros(1)
    with sanitizer.watch() as report:
        sum_kernel[(4,)](x, y, 0, BLOCK=16)
    assert report.ok and y.item() == 64
    with sanitizer.watch() as report:
        sum_kernel[(4,)](x, y, 1000, BLOCK=16)
    assert {finding.kind for finding in report.findings} == {sanitizer.STORE} and y.item() == 64


def test_the_interpreter_is_as_before_when_the_block_ends_even_by_an_error():
    import triton.runtime.interpreter as interpreter

    load, call, convert = (
        interpreter.InterpreterBuilder.create_masked_load,
        interpreter.GridExecutor.__call__,
        interpreter._implicit_cvt,
    )
    with pytest.raises(KeyError), sanitizer.watch():
        assert interpreter.InterpreterBuilder.create_masked_load is not load
        raise KeyError
    assert interpreter.InterpreterBuilder.create_masked_load is load
    assert interpreter.GridExecutor.__call__ is call and interpreter._implicit_cvt is convert


def test_watches_nest():
    x, y = torch.randn(37), torch.zeros(37)
    with sanitizer.watch(x=x) as outer, sanitizer.watch(x=x) as inner:
        assert sanitizer.available()
        copy_kernel[(3,)](x, y, 37, BLOCK=16, MASK=False)
    assert not inner.ok and inner.bytes_loaded == outer.bytes_loaded


def test_only_tensors_can_be_watched():
    with pytest.raises(ValueError, match="x must be a torch.Tensor"), sanitizer.watch(x=[1.0]):
        pass


def test_a_tensor_elsewhere_cannot_be_watched():
    with pytest.raises(ValueError, match="y_ptr must be on the CPU .* got 'meta'"), sanitizer.watch():
        copy_kernel[(1,)](torch.randn(4), torch.empty(4, device="meta"), 4, BLOCK=4, MASK=True)


def test_with_an_unknown_version_of_triton_kernels_run_unwatched(monkeypatch):
    import triton.runtime.interpreter as interpreter

    monkeypatch.delattr(interpreter.InterpreterBuilder, "create_atomic_cas")
    assert not sanitizer.available()
    x, y = torch.randn(16), torch.zeros(16)
    with sanitizer.watch(x=x) as report:
        copy_kernel[(1,)](x, y, 16, BLOCK=16, MASK=True)
    assert torch.equal(x, y) and report.ok and report.programs == 0


def test_an_interpreter_whose_parameters_have_another_order_is_not_watched(monkeypatch):
    import triton.runtime.interpreter as interpreter

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", lambda self, mask, ptrs, other: None)
    assert not sanitizer.available()


def test_overflow_checks_that_nobody_looks_at_are_left_out_and_put_back():
    import triton.runtime.interpreter as interpreter

    builder = interpreter.interpreter_builder
    options = builder.options
    with sanitizer.watch():
        assert not builder.options.sanitize_overflow and not builder.options.debug
    assert builder.options is options
    builder.options = dataclasses.replace(options, debug=True)
    try:
        with sanitizer.watch():
            assert builder.options.sanitize_overflow  # here they are looked at
    finally:
        builder.options = options
