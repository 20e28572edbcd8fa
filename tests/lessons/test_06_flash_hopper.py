"""Lesson 06's checks: orders and roles as plain data, what is said of faulty ones, and correct answers that differ
from the solutions.
"""

import re

import pytest
import torch

from llmsys.attention.hopper.consumer import step
from llmsys.attention.hopper.simulated.forward import kernel_here, simulate
from llmsys.course.attempts import check
from llmsys.hardware import sm
from llmsys.hardware.mbarrier import Arrive, Barrier, Copy, Expect, Read, Wait
from llmsys.hardware.tier import triton_installed
from llmsys.lessons.lesson_06_flash_hopper.checks.ring import ring_warp
from llmsys.lessons.lesson_06_flash_hopper.plain_programs import (
    held_up,
    plain_order,
    plain_roles,
    play_roles,
    run_order,
)
from tests.support.self_tests import assert_check_stands, exercises_of


@pytest.mark.parametrize("name", list(sm.ORDERS))
def test_an_order_as_plain_data_gives_the_same_timeline(name):
    plain = plain_order(sm.ORDERS[name])(7, 2)
    assert run_order(plain, 2, 7, 128) == sm.run(sm.ORDERS[name](7, 2), sm.attention_costs(D=128))


def test_a_faulty_order_is_described_in_words():
    assert "0 of 2 warpgroups compute" in run_order(plain_order(lambda *_: [[], []])(1, 2), 2, 1, 64)
    assert run_order([[["Load", "K", 0], ["Scores", 0]]], 1, 1, 64).startswith("0 of 1")
    late = [["Load", "K", 0], ["Load", "V", 0], ["Wait", "K", 0], ["Scores", 0], ["Softmax", 0]]
    late += [["Wait", "V", 0], ["Output", 0], ["Wait", "O", 0]]
    assert "has not waited for S0" in run_order([late], 1, 1, 64)
    assert run_order([[["Exec", 0]]], 1, 1, 64) == "'Exec'"  # what is no action is none of ours to run
    with pytest.raises(TypeError, match="is no action"):
        plain_order(lambda tiles, warpgroups: [["Load"]])(1, 1)
    with pytest.raises(TypeError, match="must return a list of lists"):
        plain_order(lambda tiles, warpgroups: None)(1, 1)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (sm.overlapped_order, ""),
        (sm.producer_order, "there are no turns: .*; nothing of its own runs"),
        (lambda t, w: sm.overlapped_order(t, w, "started"), "passed on when S is only started"),
        (sm.ping_pong_order, "^nothing of its own runs"),
        (lambda t, w: changed(t, w, [sm.Pass(), sm.Softmax(5)], [sm.Softmax(5), sm.Pass()]), "^the turn is kept"),
        (lambda t, w: changed(t, w, [sm.Scores(5), sm.Output(4)], [sm.Output(4), sm.Scores(5)]), "is started before S"),
        (lambda t, w: changed(t, w, [sm.Load("K", 5), sm.Load("V", 5)], [sm.Load("V", 5), sm.Load("K", 5)]), "V of a"),
    ],
)
def test_the_reason_for_idle_tensor_cores_is_named(order, said):
    found = held_up(plain_order(order)(10, 2))
    assert re.search(said, found) and bool(found) == bool(said)


def changed(tiles, warpgroups, old, new):
    """The overlapped order in which two neighbours have changed places."""
    programs = sm.overlapped_order(tiles, warpgroups)
    for program in programs:
        for n in range(len(program)):
            if program[n : n + 2] == old:
                program[n : n + 2] = new
    return programs


@pytest.mark.parametrize(("slots", "consumers", "tiles"), [(1, 1, 4), (2, 2, 7), (3, 1, 8)])
def test_roles_as_plain_data_read_every_tile(slots, consumers, tiles):
    plain = plain_roles(ring_warp)(slots, consumers, tiles)
    assert all(play_roles(plain, slots, consumers, tiles, seed) == "every tile was read" for seed in range(9))


def test_a_faulty_role_is_described_in_words():
    def endless(role, ring, tiles):
        while True:
            yield Arrive(ring.full[0])

    def foreign(role, ring, tiles):
        yield Wait(Barrier(1, "mine"), 0)

    with pytest.raises(TypeError, match="no end of them"):
        plain_roles(endless)(1, 1, 2)
    with pytest.raises(TypeError, match="mine is not a barrier of the ring"):
        plain_roles(foreign)(1, 1, 2)
    with pytest.raises(TypeError, match="must be a generator"):
        plain_roles(lambda *_: [])(1, 1, 2)
    assert play_roles({"producer": [["Copy", 0, 5]], "consumer": []}, 1, 1, 1, 0).endswith("slots are 0 to 0")


def blocks_one_by_one(x, rows=128):
    codes, scales = torch.empty(x.shape, dtype=torch.float8_e4m3fn), []
    for start in range(0, x.shape[-2], rows):
        block = x[..., start : start + rows, :].float()
        largest = block.abs().nan_to_num(0, posinf=0).flatten(-2).amax(-1)
        scale = torch.where(largest == 0, 1.0, largest * (1 / 448))
        codes[..., start : start + rows, :] = (block / scale[..., None, None]).clamp(-448, 448).to(codes.dtype)
        scales.append(scale)
    return codes, torch.stack(scales, -1)


def walk_with_phases(role, ring, tiles):
    phase, slot = [0] * ring.slots, 0
    for i in range(tiles):
        if role == "producer":
            yield Wait(ring.empty[slot], 1 - phase[slot])
            yield Copy(i, slot)
            yield Expect(ring.full[slot], ring.tile_bytes)
        else:
            yield Wait(ring.full[slot], phase[slot])
            yield Read(slot)
            yield Arrive(ring.empty[slot])
        phase[slot] ^= 1
        slot = (slot + 1) % ring.slots


def values_late(tiles, warpgroups):
    """The producer brings each V after the next K; a warpgroup waits for V after its scores have been started."""
    program = [sm.Wait("K", 0), sm.Turn(), sm.Scores(0), sm.Wait("S", 0), sm.Pass(), sm.Softmax(0)]
    for i in range(1, tiles):
        program += [sm.Wait("K", i), sm.Turn(), sm.Scores(i), sm.Wait("V", i - 1), sm.Output(i - 1)]
        program += [sm.Wait("S", i), sm.Pass(), sm.Softmax(i), sm.Wait("O", i - 1)]
    program += [sm.Wait("V", tiles - 1), sm.Output(tiles - 1), sm.Wait("O", tiles - 1)]
    loads = [sm.Load("K", 0)]
    for i in range(1, tiles):
        loads += [sm.Load("K", i), sm.Load("V", i - 1)]
    return [list(program) for _ in range(warpgroups)] + [[*loads, sm.Load("V", tiles - 1)]]


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("06.quantize_blocks", blocks_one_by_one), ("06.ring", walk_with_phases), ("06.order", values_late)],
)
def test_a_correct_answer_that_differs_from_the_solution_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
def test_a_step_decorated_with_gluon_jit_runs_as_plain_python():
    q, k, v = (torch.randn(1, 1, T, 64).half() for T in (100, 200, 200))
    for seed in range(3):
        theirs = simulate(q, k, v, causal=True, seed=seed)
        mine = simulate(q, k, v, causal=True, seed=seed, kernel=kernel_here(step=step))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("exercise", exercises_of("06"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
