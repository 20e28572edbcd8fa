"""The hopper kernel's text on simulated warps and engines: right for every order, and wrong kernels are found out."""

import random
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.hopper import forward
from llmsys.attention.hopper.schedule import HopperTiles
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.backward import simulate_backward
from llmsys.attention.hopper.simulated.forward import kernel_here, simulate
from llmsys.attention.hopper.simulated.processor import Deadlock, Processor, Race, here
from llmsys.attention.operators import with_gradients
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware.tier import load_triton, triton_installed
from tests.attention.sample import examples

if triton_installed():
    load_triton()  # before torch's compiler does, in the other mode

TWO, THREE = HopperTiles(2, 128, 2, 240, 24), HopperTiles(3, 128, 4, 160, 32)
LENGTHS = st.sampled_from([1, 64, 127, 128, 129, 300, 520])


def qkv(B, G, Hkv, Tq, Tk, D, dtype=torch.float16, size=1.0):
    shapes = (B, G * Hkv, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, D)
    q, k, v = (torch.randn(shape).to(dtype) for shape in shapes)
    return q * size, k, v


@settings(max_examples=examples(25))
@given(
    B=st.integers(1, 2), G=st.sampled_from([1, 3]), Hkv=st.integers(1, 2), Tq=LENGTHS, Tk=LENGTHS,
    D=st.sampled_from([64, 128]), causal=st.booleans(), tiles=st.sampled_from([TWO, THREE]),
    programs=st.sampled_from([1, 3]), dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_output_and_lse_agree_with_the_definition_in_any_order_of_warps(
    B, G, Hkv, Tq, Tk, D, causal, tiles, programs, dtype, seed
):
    torch.manual_seed(seed)
    q, k, v = qkv(B, G, Hkv, Tq, Tk, D, dtype)
    o, lse = simulate(q, k, v, causal=causal, seed=seed, tiles=tiles, programs=programs)
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=causal, return_lse=True)
    eager = (eager_attention(q, k, v, causal=causal).double() - exact).abs().max()
    assert (o.double() - exact).abs().max() <= 2 * eager + 1e-5
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-5, rtol=1e-5)


def test_the_order_of_warps_changes_no_bit():
    torch.manual_seed(1)
    q, k, v = qkv(1, 2, 1, 300, 400, 64)
    results = [simulate(q, k, v, causal=True, seed=seed) for seed in range(5)]
    assert all(torch.equal(o, results[0][0]) and torch.equal(lse, results[0][1]) for o, lse in results)


def test_large_scores_overflow_nothing():
    torch.manual_seed(2)
    q, k, v = qkv(1, 1, 1, 130, 257, 64, size=1e3)
    o, lse = simulate(q, k, v, causal=True)
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=True, return_lse=True)
    torch.testing.assert_close(o.double(), exact, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-2, rtol=1e-5)


# Kernels that are wrong


def ring_of(kernel):
    return kernel.__globals__["new_ring"].__globals__["Ring"]


def test_tiles_that_are_not_given_back_end_in_a_deadlock():
    kernel = kernel_here()
    ring_of(kernel).give_back = lambda self, i: None
    message = r"consume 0 waits for Ring.full\[\d\] to end a phase.*produce 2 waits for Ring.empty\[\d\]"
    with pytest.raises(Deadlock, match=message):
        simulate(*qkv(1, 1, 1, 128, 1000, 64), tiles=TWO, kernel=kernel)


def test_turns_that_are_not_passed_on_end_in_a_deadlock():
    kernel = kernel_here()
    kernel.__globals__["new_turns"].__globals__["Turns"].pass_on = lambda self, j: None
    with pytest.raises(Deadlock, match=r"consume 1 waits for Turns.barriers\[1\] to end"):
        simulate(*qkv(1, 1, 1, 128, 300, 64), tiles=TWO, kernel=kernel)


def test_a_tile_that_is_waited_for_too_late_is_a_race_or_nan():
    kernel = kernel_here()
    ring = ring_of(kernel)
    wait, give_back = ring.take, ring.give_back

    def take(self, i):
        tile = self.tiles.index(i % self.SLOTS)
        return tile.reshape(tile.shape[2:])

    def late(self, i):
        wait(self, i)
        give_back(self, i)

    ring.take, ring.give_back = take, late
    outcomes = set()
    for seed in range(20):
        try:
            o, _ = simulate(*qkv(1, 1, 1, 64, 100, 64), tiles=TWO, kernel=kernel, seed=seed)
            outcomes.add("NaN" if o.isnan().any() else "luck")
        except Race:
            outcomes.add("race")
    assert {"NaN", "race"} <= outcomes


def test_a_tile_that_is_given_back_before_its_product_is_done_is_a_race():
    kernel = kernel_here()
    ring = ring_of(kernel)
    take, give_back = ring.take, ring.give_back

    def hasty(self, i):
        tile = take(self, i)
        give_back(self, i)
        return tile

    ring.take, ring.give_back = hasty, lambda self, i: None
    with pytest.raises(Race, match="a copy is started into a tile that a product of consume . still reads"):
        for seed in range(10):
            simulate(*qkv(1, 1, 1, 128, 1000, 64), tiles=TWO, kernel=kernel, seed=seed)


@pytest.mark.parametrize("use", [lambda o: o.type, lambda o: o * 2, lambda o: 2 * o, lambda o: o + torch.ones(1)])
def test_a_product_that_was_not_waited_for_cannot_be_used(use):
    def hasty(J, q, keys, values, turns, i, turn, p, m, l, o, *rest):
        return p, m, l, use(gluon.warpgroup_mma(p, values.take(i), o, is_async=True))

    with pytest.raises(Race, match="a product is used that may still be under way"):
        simulate(*qkv(1, 1, 1, 64, 300, 64), tiles=TWO, kernel=kernel_here(step=hasty))


def test_a_product_that_is_used_too_early_is_named_by_its_place():
    def hasty(J, q, keys, values, turns, i, turn, p, m, l, o, *rest):
        first = gluon.warpgroup_mma(p, values.take(i), o, is_async=True)
        gluon.warpgroup_mma(p, values.take(i), o, is_async=True)
        return p, m, l, first * 2

    with pytest.raises(Race, match=r"under way \(1 of 2, as they were started\): warpgroup_mma_wait first"):
        simulate(*qkv(1, 1, 1, 64, 300, 64), tiles=TWO, kernel=kernel_here(step=hasty))


def test_a_missing_fence_or_a_wait_for_too_few_products_is_a_race():
    kernel = kernel_here(fence_async_shared=lambda: None)
    with pytest.raises(Race, match="no fence between storing a tile"):
        simulate(*qkv(1, 1, 1, 64, 64, 64), kernel=kernel)
    wait = kernel.__globals__["consume"].__globals__["warpgroup_mma_wait"]
    kernel = kernel_here(warpgroup_mma_wait=lambda pending, deps: wait(1, deps))
    with pytest.raises(Race, match="a product is used that may still be under way"):
        simulate(*qkv(1, 1, 1, 64, 64, 64), kernel=kernel)


def test_an_error_in_the_kernel_is_raised_and_no_thread_is_left():
    def consume(J, *rest):
        raise ArithmeticError("mine")

    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="mine"):
        simulate(*qkv(1, 1, 1, 64, 64, 64), kernel=kernel_here(consume=consume))
    assert threading.active_count() == before


def test_a_deadlock_says_who_waits_for_what():
    processor = Processor(0, 1, random.Random(0))
    with pytest.raises(Deadlock, match="a waits for b's word; b waits for a's word"):
        processor.run(
            {name: lambda other=other: here.warp.wait(lambda: False, f"{other}'s word") for name, other in ("ab", "ba")}
        )


def test_simulating_loads_no_module_for_others():
    before = {name: module for name, module in sys.modules.items() if "hopper" in name}
    kernel_here()
    assert {name: module for name, module in sys.modules.items() if "hopper" in name} == before


@pytest.mark.parametrize("eager", [False, True])
def test_the_operator_traces_and_has_gradients(monkeypatch, eager):
    def backward(q, k, v, o, lse, do, dlse, causal, scale, deterministic):
        return simulate_backward(q, k, v, o, lse, do, dlse, causal=causal, scale=scale, deterministic=deterministic)

    def launch(q, k, v, causal, scale):
        return simulate(q, k, v, causal=causal, scale=scale)

    monkeypatch.setattr(forward, "launch", launch)
    differentiable = with_gradients(forward.hopper_forward, launch, forward._gradients)
    monkeypatch.setattr(forward, "differentiable", differentiable)
    for module in (forward, sys.modules["llmsys.attention.hopper.backward"]):  # the operator calls its own module's
        monkeypatch.setattr(module, "backward", backward)
    torch.manual_seed(3)
    q, k, v = (x.requires_grad_() for x in qkv(1, 2, 1, 20, 35, 64))
    if eager:
        monkeypatch.setattr(forward, "_check_supported", lambda q, v: None)
        o, lse = forward.hopper_attention(q, k, v, causal=True, return_lse=True)
    else:
        torch.library.opcheck(forward.hopper_forward, (q, k, v, True, 0.125))
        o, lse = forward.hopper_forward(q, k, v, True, 0.125)
    (o.float().square().sum() + lse.sum()).backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    o, lse = naive_attention(*exact, causal=True, return_lse=True)
    (o.square().sum() + lse.sum()).backward()
    for mine, theirs in zip((q, k, v), exact, strict=True):
        assert ((mine.grad.double() - theirs.grad).norm() / theirs.grad.norm()).item() < 1e-2
