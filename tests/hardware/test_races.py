"""The sanitizer reports races of programs and lanes, and claims nothing about an order that it cannot see."""

import pytest
import torch

from llmsys.hardware import sanitizer
from llmsys.hardware.sanitizer import LANE_RACE, RACE, READ_RACE
from llmsys.hardware.tier import load_triton, triton_installed

if not (triton_installed() and sanitizer.available()):
    pytest.skip("the sanitizer watches Triton's interpreter, which does not run here", allow_module_level=True)
triton, tl = load_triton()


def watched(kernel, grid, *args, **options):
    with sanitizer.watch() as report:
        kernel[grid](*args, **options)
    return report


def kinds(report):
    return {finding.kind for finding in report.findings}


@triton.jit
def stencil_kernel(x, y, n, BLOCK: tl.constexpr, STEP: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    near = tl.load(x + i + STEP, mask=(i + STEP >= 0) & (i + STEP < n), other=0.0)
    tl.store(y + i, near + 1.0, mask=i < n)


@pytest.mark.parametrize("step", [-1, 1])
def test_a_stencil_in_place_is_a_race_of_programs_whichever_of_them_comes_first(step):
    x = torch.zeros(16)
    report = watched(stencil_kernel, (4,), x, x, 16, BLOCK=4, STEP=step)
    assert kinds(report) == {READ_RACE} and not report.ok and "no races" not in str(report)
    did, had = ("loaded from", "stored") if step < 0 else ("stored to", "loaded")
    assert f"program (1, 0, 0): 1 lane {did} x where another program had {had}" in str(report)
    assert watched(stencil_kernel, (4,), torch.zeros(16), x, 16, BLOCK=4, STEP=step).ok


def test_views_of_one_storage_are_the_same_memory():
    x = torch.zeros(20)
    report = watched(stencil_kernel, (4,), x[:16], x[4:], 16, BLOCK=4, STEP=0)
    assert kinds(report) == {READ_RACE}
    assert watched(stencil_kernel, (2,), x[:8], x[8:], 8, BLOCK=4, STEP=0).ok


def test_two_tensors_of_different_types_over_the_same_bytes_are_the_same_memory():
    x = torch.zeros(16)
    report = watched(stencil_kernel, (4,), x.view(torch.int16)[8:24], x[:8], 8, BLOCK=4, STEP=0)
    assert kinds(report) == {READ_RACE}


def test_what_one_launch_stores_another_may_load():
    x = torch.zeros(16)
    with sanitizer.watch() as report:
        stencil_kernel[(4,)](torch.zeros(16), x, 16, BLOCK=4, STEP=0)
        stencil_kernel[(4,)](x, torch.zeros(16), 16, BLOCK=4, STEP=1)
    assert report.ok and "no races" in str(report)


@triton.jit
def scatter_kernel(place, value, out, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(out + tl.load(place + i), tl.load(value + i))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.int64])
def test_lanes_of_one_store_race_where_they_store_different_values_to_one_address(dtype):
    values, out = torch.tensor([1, 2, 3, 4]).to(dtype), torch.zeros(4, dtype=dtype)
    report = watched(scatter_kernel, (1,), torch.tensor([0, 1, 1, 2]), values, out, B=4)
    (finding,) = report.findings
    assert finding.kind == LANE_RACE and finding.lanes == (1, 2) and finding.tensor == "out"
    assert "2 lanes stored to out at one address, different values" in str(report)
    assert watched(scatter_kernel, (1,), torch.tensor([0, 1, 3, 2]), values, out, B=4).ok
    same = torch.ones(4, dtype=dtype)
    assert watched(scatter_kernel, (1,), torch.tensor([0, 1, 1, 2]), same, out, B=4).ok, "the same value, whoever wins"


@triton.jit
def wide_kernel(x, value, STEP: tl.constexpr, LANES: tl.constexpr):
    at = x + (tl.program_id(0) * LANES + tl.arange(0, LANES)) * STEP
    tl.store(at.to(tl.pointer_type(tl.int64)), tl.full((LANES,), 0, tl.int64) + value)


def test_wide_stores_that_overlap_race_between_programs_and_between_lanes():
    x = torch.zeros(8, dtype=torch.int32)
    assert kinds(watched(wide_kernel, (3,), x, 1, STEP=1, LANES=1)) == {RACE}
    report = watched(wide_kernel, (1,), x, 1, STEP=1, LANES=2)
    assert kinds(report) == {LANE_RACE} and report.findings[0].lanes == (0, 1)
    assert watched(wide_kernel, (1,), x, 0, STEP=1, LANES=2).ok, "zeros over zeros"
    for grid, lanes in (((3,), 1), ((1,), 4)):
        assert watched(wide_kernel, grid, x, 1, STEP=2, LANES=lanes).ok


def test_a_wide_store_that_covers_a_gap_between_elements_is_outside():
    x = torch.zeros(4, 4, dtype=torch.int32)[:, :2]
    assert watched(wide_kernel, (2,), x, 1, STEP=4, LANES=1).ok
    report = watched(wide_kernel, (2,), x[:, :1], 1, STEP=4, LANES=1)
    assert kinds(report) == {sanitizer.STORE}


@triton.jit
def bytes_kernel(x, B: tl.constexpr, STEP: tl.constexpr):
    at = x.to(tl.pointer_type(tl.int8)) + tl.program_id(0) * STEP + tl.arange(0, B)
    tl.store(at, tl.full((B,), 1, tl.int8))


def test_different_bytes_of_one_element_are_no_race_and_the_same_byte_is():
    assert watched(bytes_kernel, (8,), torch.zeros(4), B=2, STEP=2).ok
    assert kinds(watched(bytes_kernel, (8,), torch.zeros(8), B=2, STEP=1)) == {RACE}


@triton.jit
def mixed_kernel(x, y, B: tl.constexpr):
    """The first program stores whole elements, the second one a byte of one of them."""
    if tl.program_id(0) == 0:
        tl.store(x + tl.arange(0, B), 1.0)
    else:
        tl.store(y + 4 * B - 1, 1)


def test_elements_and_bytes_are_compared_byte_by_byte():
    x = torch.zeros(8)
    assert kinds(watched(mixed_kernel, (2,), x, x.view(torch.int8), B=4)) == {RACE}
    assert watched(mixed_kernel, (2,), x, x[1:].view(torch.int8), B=4).ok


@triton.jit
def total_kernel(x, total, y, WHO: tl.constexpr):
    """Sums x atomically; a program sets the total, or reads it, and waits for nobody."""
    if WHO == "sets" and tl.program_id(0) == 0:
        tl.store(total, 0.0)
    if WHO == "reads first" and tl.program_id(0) == 1:
        tl.store(y, tl.load(total))
    tl.atomic_add(total, tl.load(x + tl.program_id(0)))
    if WHO == "reads last" and tl.program_id(0) == 1:
        tl.store(y, tl.load(total))


@triton.jit
def last_arriver_kernel(x, parts, arrived, y, N: tl.constexpr):
    """Each program leaves its part; the one that arrives last adds them up."""
    tl.store(parts + tl.program_id(0), 2 * tl.load(x + tl.program_id(0)))
    if tl.atomic_add(arrived, 1) == N - 1:
        tl.store(y, tl.sum(tl.load(parts + tl.arange(0, N)), 0))


def test_atomics_may_meet_each_other_but_not_plain_accesses_of_other_programs():
    x, total, y = torch.ones(4), torch.zeros(1), torch.zeros(1)
    report = watched(total_kernel, (4,), x, total, y, WHO="nobody")
    assert report.ok and "no races" in str(report)
    assert kinds(watched(total_kernel, (4,), x, total, y, WHO="sets")) == {RACE}
    assert kinds(watched(total_kernel, (4,), x, total, y, WHO="reads first")) == {READ_RACE}
    assert kinds(watched(total_kernel, (4,), x, total, y, WHO="reads last")) == {READ_RACE}


def test_after_an_atomic_operation_nothing_is_claimed():
    y = torch.zeros(1)
    arrived = torch.zeros(1, dtype=torch.int32)
    report = watched(last_arriver_kernel, (4,), torch.ones(4), torch.zeros(4), arrived, y, N=4)
    assert y.item() == 8
    assert report.ok and "no access outside the tensors" in str(report)
    assert "no races" not in str(report) and "not known" in str(report)
    assert any("after an atomic operation" in str(finding) for finding in report.undecided)


@triton.jit
def turn_kernel(x, N: tl.constexpr, HOW: tl.constexpr):
    """x reversed in place, or by way of memory, by one program."""
    i = tl.arange(0, N)
    if HOW == "in place":
        tl.store(x + N - 1 - i, tl.load(x + i))
    else:
        tl.store(x + N + i, tl.load(x + i))
        if HOW == "by memory, in order":
            tl.debug_barrier()
        tl.store(x + i, tl.load(x + N + (N - 1 - i)))


@pytest.mark.parametrize(("how", "known"), [("in place", False), ("by memory", False), ("by memory, in order", True)])
def test_within_a_program_only_a_barrier_makes_an_order_between_threads(how, known):
    x = torch.arange(32.0)
    report = watched(turn_kernel, (1,), x, N=16, HOW=how)
    assert report.ok and ("no races" in str(report)) == known
    assert known == (not report.undecided)
    if not known:
        assert "tl.debug_barrier() would put them in order" in str(report)


@triton.jit
def column_kernel(x, N: tl.constexpr, UP: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(x + i)
    if UP:
        tl.store(x + i[:, None], value[:, None] + 1.0)
    else:
        tl.store(x + i, value + 1.0)


def test_in_place_a_lane_may_store_where_it_has_loaded_in_a_tile_of_the_same_shape():
    assert "no races" in str(watched(column_kernel, (1,), torch.zeros(16), N=16, UP=False))
    assert "no races" not in str(watched(column_kernel, (1,), torch.zeros(16), N=16, UP=True))


def test_without_a_launch_nothing_is_claimed(monkeypatch):
    with sanitizer.watch() as report:
        pass
    assert "no races" not in str(report) and "nothing was watched" in str(report)
    monkeypatch.setattr(sanitizer, "available", lambda: False)
    assert "nothing was watched" in str(watched(column_kernel, (1,), torch.zeros(16), N=16, UP=False))


def test_a_barrier_is_hooked_only_where_the_interpreter_has_one(monkeypatch):
    import triton.runtime.interpreter as interpreter

    monkeypatch.delattr(interpreter.InterpreterBuilder, "create_barrier")
    assert sanitizer.available()
    assert watched(column_kernel, (1,), torch.zeros(16), N=16, UP=False).ok
    assert not hasattr(interpreter.InterpreterBuilder, "create_barrier")
