"""Experts: torch's products and the kernels equal the loop, with gradients, at any loads; no others' memory is used."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsys.hardware import sanitizer
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from llmsys.moe.experts import (
    experts_loop,
    experts_torch,
    gated_silu,
    group_by_expert,
    grouped_matmul,
    permute,
    run_experts,
    unpermute,
)
from tests.attention.sample import examples
from tests.support.poison import poison_new_memory

if triton_installed():
    load_triton()
needs_triton = pytest.mark.skipif(not triton_installed(), reason="needs Triton")
DEVICE = triton_device() if triton_installed() else torch.device("cpu")
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("Triton compiles in this process, and there is no GPU", allow_module_level=True)


def case(N, K, E, C, I, kind="any", seed=0, dtype=torch.float32):  # noqa: E741
    """x, experts, weights, gate_up, down."""
    random = torch.Generator().manual_seed(seed)
    experts = torch.randint(0, E, (N, K), generator=random)
    if kind == "one takes all":
        experts.fill_(E - 1)
    if kind == "most are empty":
        experts %= 2
    if kind == "some are elsewhere":
        experts[torch.rand(N, K, generator=random) < 0.5] = -1
    if kind == "all are elsewhere":
        experts.fill_(-1)
    shapes = ((N, C), (E, 2 * I, C), (E, C, I))
    x, gate_up, down = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    found = (x, experts, torch.rand(N, K, generator=random), gate_up / C**0.5, down / I**0.5)
    return [each.to(DEVICE) for each in found]


KINDS = ["any", "one takes all", "most are empty", "some are elsewhere", "all are elsewhere"]


def with_gradients(run, x, experts, *others):
    """Output and gradients, by the output's own numbers and more."""
    leaves = [each.detach().clone().requires_grad_() for each in (x, *others)]
    out = run(leaves[0], experts, *leaves[1:]) + 0 * leaves[0]  # which has a graph where no token goes anywhere
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout, materialize_grads=True)]


def triton(*arguments):
    return run_experts(*arguments, form="triton")


def assert_alike(got, expected):
    for name, a, b in zip(("out", "x", "weights", "gate_up", "down"), got, expected, strict=True):
        assert a.dtype == b.dtype, name
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


# Groups


@settings(max_examples=60)
@given(
    N=st.integers(0, 9), K=st.integers(1, 4), E=st.integers(1, 7), block_m=st.sampled_from([None, 1, 3, 16]),
    kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_groups_are_the_assignments_sorted_and_no_tile_has_rows_of_two_experts(N, K, E, block_m, kind, seed):
    experts = case(N, K, E, 1, 1, kind, seed)[1]
    groups = group_by_expert(experts, E, block_m=block_m)
    flat = experts.flatten().tolist()
    expected = [[n for n, e in enumerate(flat) if e == expert] for expert in range(E)]
    starts = groups.starts.tolist()
    assert [groups.order[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)] == expected
    assert (groups.experts, groups.top) == (E, K)
    for assignment, row in enumerate(groups.rows.flatten().tolist()):
        assert row == -1 if flat[assignment] == -1 else groups.order[row] == assignment
    covered = []
    for e, first in zip(groups.tile_expert.tolist(), groups.tile_row.tolist(), strict=True):
        if e < E:
            covered += range(first, min(first + groups.block_m, starts[e + 1]))
            assert starts[e] <= first < starts[e + 1]
    assert covered == list(range(starts[-1]))


def test_a_tile_has_the_fewest_rows_that_hold_what_an_expert_has_on_average():
    sizes = {R: group_by_expert(torch.zeros(R, 1, dtype=torch.int64), 2).block_m for R in (1, 32, 33, 200, 4096)}
    assert sizes == {1: 16, 32: 16, 33: 32, 200: 128, 4096: 128}


# Against the loop


@settings(max_examples=examples(40))
@given(
    N=st.sampled_from([0, 1, 2, 7]), K=st.integers(1, 3), E=st.integers(1, 5), C=st.sampled_from([1, 3, 16]),
    I=st.sampled_from([1, 5, 16]), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_torchs_products_equal_the_loop_with_gradients(N, K, E, C, I, kind, seed):  # noqa: E741
    given = case(N, K, E, C, I, kind, seed)
    assert_alike(with_gradients(experts_torch, *given), with_gradients(experts_loop, *given))


@needs_triton
@settings(max_examples=examples(16), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    N=st.sampled_from([0, 1, 2, 7]), K=st.integers(1, 3), E=st.integers(1, 5), C=st.sampled_from([1, 13, 33, 65]),
    I=st.sampled_from([1, 5, 33]), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_kernels_equal_the_loop_with_gradients_and_never_use_what_nobody_wrote(
    monkeypatch, N, K, E, C, I, kind, seed  # noqa: E741
):  # fmt: skip
    given = case(N, K, E, C, I, kind, seed)
    expected = with_gradients(experts_loop, *given)
    with monkeypatch.context() as patch:
        poison_new_memory(patch)
        assert_alike(with_gradients(triton, *given), expected)


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_loop_where_experts_have_several_tiles(kind, monkeypatch):
    given = case(45, 2, 3, 65, 17, kind)
    groups = group_by_expert(given[1], 3, block_m=16)
    expected = with_gradients(experts_torch, *given)
    poison_new_memory(monkeypatch)
    assert_alike(with_gradients(lambda *each: run_experts(*each, form="triton", groups=groups), *given), expected)


@needs_triton
@pytest.mark.parametrize("run", [experts_torch, triton])
def test_in_half_precision_the_error_is_of_the_size_of_the_loops(run):
    given = case(9, 3, 4, 48, 40, "some are elsewhere", dtype=torch.float16)
    exact = with_gradients(experts_loop, *(each.float() if each.is_floating_point() else each for each in given))
    for a, b, right in zip(with_gradients(run, *given), with_gradients(experts_loop, *given), exact, strict=True):
        error, allowed = ((each.float() - right).abs().max() for each in (a, b))
        assert error <= 2 * allowed + 1e-3 * right.abs().max(), (error, allowed)


@needs_triton
def test_inputs_may_lie_in_any_order_and_weights_alone_may_want_gradients():
    x, experts, weights, gate_up, down = case(5, 2, 3, 8, 6)
    apart = [each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in (x, weights, gate_up, down)]
    expected = with_gradients(experts_loop, x, experts, weights, gate_up, down)
    assert_alike(with_gradients(triton, apart[0], experts, *apart[1:]), expected)
    weights.requires_grad_()
    triton(x, experts, weights, gate_up, down).sum().backward()
    other = weights.detach().clone().requires_grad_()
    experts_loop(x, experts, other, gate_up, down).sum().backward()
    torch.testing.assert_close(weights.grad, other.grad, atol=1e-5, rtol=1e-4)


@needs_triton
def test_moving_rows_there_and_back_gives_each_token_as_often_as_it_went():
    x, experts, *_ = case(6, 3, 4, 5, 1, "some are elsewhere")
    groups = group_by_expert(experts, 4)
    back = unpermute(permute(x, groups), torch.ones(6, 3, device=DEVICE), groups)
    torch.testing.assert_close(back, x * (experts >= 0).sum(1, keepdim=True))


# Memory


@pytest.mark.skipif(not triton_installed() or not interpreting(), reason="the sanitizer watches the interpreter")
def test_no_lane_leaves_its_tensor_and_matrices_of_experts_without_a_row_are_not_read():
    x, experts, weights, gate_up, down = case(7, 2, 5, 33, 17, "most are empty")
    with sanitizer.watch(x=x, gate_up=gate_up, down=down) as report:
        with_gradients(lambda x, e, w: triton(x, e, w, gate_up, down), x, experts, weights)
    assert report.ok and not report.undecided, report
    used = experts.unique().numel()
    assert used == 2
    for matrix, name in ((gate_up, "gate_up"), (down, "down")):
        assert report.bytes_loaded[name] == used * matrix[0].nbytes, name
    assert report.bytes_loaded["weight_ptr"] == used * (gate_up[0].nbytes + down[0].nbytes)  # backward, transposed


@pytest.mark.skipif(not triton_installed() or not interpreting(), reason="the sanitizer watches the interpreter")
def test_a_row_is_read_once_for_each_expert_of_its_token_and_rows_of_nobody_not_at_all():
    x, experts, weights, *_ = case(6, 3, 4, 20, 1, "some are elsewhere")
    groups, there = group_by_expert(experts, 4), int((experts >= 0).sum())
    with sanitizer.watch(x=x) as report:
        rows = permute(x, groups)
    assert report.ok and report.bytes_loaded["x"] == there * 20 * 4 == report.bytes_stored["rows_ptr"]
    rows[there:] = math.nan
    with sanitizer.watch(rows=rows) as report:
        out = unpermute(rows, weights, groups)
    assert report.ok and report.bytes_loaded["rows"] == there * 20 * 4 and out.isfinite().all()


# Refusals


def change(**changes):
    names = ("x", "experts", "weights", "gate_up", "down")
    given = dict(zip(names, case(3, 2, 4, 6, 5), strict=True))
    return given | {name: how(given[name]) for name, how in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=lambda x: x[0]), r"x must be \(N, C\) floating-point numbers"),
        (dict(gate_up=lambda w: w[:, :9]), r"gate_up and down must be \(E, 2 I, C\) and \(E, C, I\) with x's C = 6"),
        (dict(down=lambda w: w[:3]), "gate_up and down must be"),
        (dict(down=lambda w: w[:, :, :0]), "none of them 0"),
        (dict(down=lambda w: w.half()), "down must be torch.float32 on .* as x, got torch.float16"),
        (dict(experts=lambda e: e[:2]), "experts must be whole numbers .*, a row for each of x's 3 tokens"),
        (dict(weights=lambda w: w.double()), r"weights must be float32 \(3, 2\) as experts, got torch.float64"),
        (dict(experts=lambda e: e * 0 + 4), "experts must be of 0 to 3, or −1 for none, got 4 to 4"),
        (dict(experts=lambda e: e.float()), "experts must be whole numbers"),
    ],
)
def test_refusals_name_the_argument(changes, message):
    with pytest.raises(ValueError, match=message):
        run_experts(**change(**changes), form="torch")


@needs_triton
def test_parts_that_do_not_go_together_are_refused_by_the_single_steps_too():
    x, experts, weights, gate_up, _ = case(3, 2, 4, 6, 5)
    groups = group_by_expert(experts, 4)
    for call, message in (
        (lambda: permute(x[:2], groups), r"x must be \(3, …\), a vector for each of the groups' tokens"),
        (lambda: unpermute(x, weights, groups), r"rows must be \(6, …\)"),
        (lambda: unpermute(x[[0, 0, 1, 1, 2, 2]], weights.half(), groups), "weights must be float32"),
        (lambda: gated_silu(torch.ones(6, 5), groups), "as many columns for the gate as for up, got 5"),
        (lambda: grouped_matmul(x, gate_up, groups), r"x must be \(6, IN\), the groups' rows"),
        (lambda: grouped_matmul(permute(x, groups), gate_up[:3], groups), r"weight must be \(4, OUT, 6\)"),
        (lambda: grouped_matmul(permute(x, groups), gate_up.half(), groups), "x and weight must be float32, float16"),
        (lambda: group_by_expert(experts, 0), "count must be at least 1 expert"),
        (lambda: run_experts(*case(3, 2, 4, 6, 5), form="cuda"), 'form must be "auto", "loop", "torch" or "triton"'),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.skipif(not triton_installed() or not interpreting(), reason="in the interpreter alone it goes wrong")
def test_what_goes_wrong_in_the_interpreter_is_refused():
    with pytest.raises(ValueError, match="bfloat16 goes wrong in Triton's interpreter"):
        triton(*case(3, 2, 4, 6, 5, dtype=torch.bfloat16))
