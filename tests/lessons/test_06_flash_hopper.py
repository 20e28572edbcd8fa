"""Lesson 06's checks: orders and roles as plain data, what is said of faulty ones, and correct answers that differ
from the solutions.
"""

import math
import re

import pytest
import torch

from llmsys.attention.hopper.consumer import step
from llmsys.attention.hopper.simulated.forward import kernel_here, simulate
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.mistakes import edited
from llmsys.hardware import sm
from llmsys.hardware.mbarrier import Arrive, Barrier, Wait, warp
from llmsys.hardware.tier import triton_installed
from llmsys.lessons.lesson_06_flash_hopper.plain_programs import (
    copies_started,
    held_up,
    only_loads,
    plain_order,
    plain_roles,
    play_roles,
    run_order,
    tiles_read,
)
from llmsys.lessons.lesson_06_flash_hopper.strict_cast import strict_cast
from tests.lessons import answers_06
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.size import FULL, SEED, drawn
from tests.support.verdicts import verdict


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


def late_output(tiles, warpgroups):
    """Turns for the scores alone: P V is started after the softmax, when the turn has been passed on."""
    program = []
    for i in range(tiles):
        program += [sm.Turn(), sm.Wait("K", i), sm.Scores(i), sm.Wait("S", i), sm.Pass(), sm.Softmax(i)]
        program += [sm.Wait("V", i), sm.Output(i), sm.Wait("O", i)]
    return [list(program) for _ in range(warpgroups)] + sm.overlapped_order(tiles, warpgroups)[-1:]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (sm.overlapped_order, ""),
        (sm.producer_order, "there are no turns: .*; nothing of its own runs"),
        (lambda t, w: sm.overlapped_order(t, w, "started"), "passed on when S is only started"),
        (sm.ping_pong_order, "^nothing of its own runs"),
        (late_output, "^P V is started out of turn, .*; nothing of its own runs"),
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
    plain = plain_roles(warp)(slots, consumers, tiles)
    assert all(play_roles(plain, slots, tiles, seed) == "every tile was read" for seed in range(9))


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
    assert play_roles([[["Copy", 0, 5]], []], 1, 1, 0).endswith("slots are 0 to 0")


@pytest.mark.parametrize(("slots", "tiles"), [(1, 3), (2, 5), (4, 4)])
def test_the_producer_is_ahead_by_all_slots_and_what_has_come_is_read(slots, tiles):
    plain = plain_roles(warp)(slots, 1, tiles)
    assert [copies_started(plain, slots, tiles, n) for n in range(tiles)] == [
        min(n + slots, tiles) for n in range(tiles)
    ]
    assert [tiles_read(plain[1], slots, n) for n in range(tiles + 1)] == list(range(tiles + 1))


def test_who_starts_the_copies_is_said():
    *programs, producer = plain_order(sm.overlapped_order)(3, 2)
    assert only_loads([*programs, producer], 2, 3) == ""
    assert "number 0 of 3" in only_loads([producer, *programs], 2, 3)
    assert "computes, and starts copies, too" in only_loads([[*producer, *programs[0]], programs[1]], 2, 3)
    assert "K0, K1, K2, V0, V1" in only_loads([*programs, producer[:-1]], 2, 3)
    assert "by 2 programs" in only_loads([*programs, producer[:2], producer[2:]], 2, 3)


ANSWERS = {
    "06.order": (answers_06.ORDERS_RIGHT, answers_06.ORDERS_WRONG),
    "06.ring": (answers_06.RINGS_RIGHT, answers_06.RINGS_WRONG),
    "06.quantize_blocks": (answers_06.BLOCKS_RIGHT, answers_06.BLOCKS_WRONG),
}
RIGHT, WRONG = ([(id, each) for id, of in ANSWERS.items() for each in of[n]] for n in range(2))


def name(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("exercise", "answer"), RIGHT, ids=name)
def test_a_right_answer_in_another_form_passes(exercise, answer):
    for seed in seeds(exercise):
        result = verdict(exercise, answer, seed)
        assert result, f"seed {seed}\n{result}"


@pytest.mark.parametrize(("exercise", "answer"), WRONG, ids=name)
def test_an_answer_that_is_nearly_right_is_rejected(exercise, answer):
    assert not any(verdict(exercise, answer, seed) for seed in seeds(exercise))


def seeds(exercise):
    """Orders and rings are asked for the same sizes with every seed."""
    return (0, SEED) if exercise == "06.quantize_blocks" else (0,)


def judged(name, changes, **options):
    """What the check makes of the library's step with these changes."""
    check = get_check("06.consumer")
    return run_check(check, check.local_runner(edited(step, name, *changes)), seed=SEED, name_mistakes=False, **options)


@pytest.mark.slow
@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
@pytest.mark.parametrize(("name", "changes"), drawn(answers_06.STEPS_RIGHT.items(), 1))
def test_a_step_in_another_form_passes(name, changes):
    result = judged(name, changes, compile_kernels=FULL)
    assert result, result


@pytest.mark.slow
@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
@pytest.mark.parametrize(("name", "changes"), drawn(answers_06.STEPS_WRONG.items(), 4))
def test_a_step_that_is_nearly_right_is_rejected(name, changes):
    """Compiled where that alone tells: it takes longer than all the rest."""
    result = judged(name, changes, compile_kernels=False) and judged(name, changes, compile_kernels=True)
    assert not result, result


@pytest.mark.slow
@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
@pytest.mark.parametrize(("name", "changes"), drawn(answers_06.STEPS_REFUSED.items(), 1))
def test_a_step_in_which_a_layout_is_wrong_is_refused_by_the_compiler(name, changes):
    q, k, v = (torch.randn(1, 1, 64, 64).half() for _ in range(3))
    said = get_check("06.consumer").local_runner(edited(step, name, *changes)).compile([((q, k, v), {})])
    assert said == [] or said[0] is not None  # [] where there is no compiler to ask


STARTED = "    s = start_scores(q, k, S)\n    o = warpgroup_mma(p, values.take(i), o, is_async=True)\n"
WAIT_FOR_S = "    s = warpgroup_mma_wait(1, [s])  # of the two, one may still run: P V\n"


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
@pytest.mark.parametrize(
    ("wait", "named"),
    [
        ("    s, o = warpgroup_mma_wait(0, [s, o])\n", "output_before_scores"),
        ("    s = warpgroup_mma_wait(1, [s])\n", "scores_still_running"),
    ],
)
def test_a_product_that_starts_before_the_scores_is_named(wait, named):
    swapped = "".join(reversed(STARTED.splitlines(keepends=True)))
    answer = edited(step, "other", (STARTED, swapped), (WAIT_FOR_S, wait))
    check = get_check("06.consumer")
    result = run_check(check, check.local_runner(answer), seed=SEED, compile_kernels=False)
    assert not result and result.misconception and result.misconception.name == named, result


HELD = (("    turns.pass_on(J)\n", ""), (WAIT_FOR_S, WAIT_FOR_S + "    turns.pass_on(J)\n"))
KEYS_BACK, VALUES_BACK = "    keys.give_back(i + 1)\n", "    values.give_back(i)\n"


@pytest.mark.skipif(not triton_installed(), reason="needs Triton")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (((WAIT_FOR_S, ""),), "scores_not_waited_for"),
        (((KEYS_BACK, ""),), "keys_not_given_back"),
        (((VALUES_BACK, ""),), "values_not_given_back"),
        (((KEYS_BACK, ""), (WAIT_FOR_S, KEYS_BACK + WAIT_FOR_S)), "keys_given_back_too_early"),
        (((VALUES_BACK, ""), (KEYS_BACK, VALUES_BACK + KEYS_BACK)), "values_given_back_too_early"),
        ((("keys.give_back(i + 1)", "keys.give_back(i)"),), "keys_of_this_tile_given_back"),
    ],
)
def test_a_mistake_is_named_however_long_the_turn_is_held(changes, named):
    answer = edited(edited(step, "held", *HELD), "other", *changes)
    check = get_check("06.consumer")
    result = run_check(check, check.local_runner(answer), seed=SEED, compile_kernels=False)
    assert not result and result.misconception and result.misconception.name == named, result


@pytest.mark.parametrize(
    ("exercise", "answer", "named"),
    [
        ("06.order", answers_06.overlaps_alone_only, None),  # alone it has the overlap that others lack
        ("06.ring", answers_06.one_tile_at_a_time, None),  # it waits for a consumer, and not for its own copy
        ("06.quantize_blocks", edited(answers_06.quantized, "own", (".clamp(-448, 448)", "")), "not_clamped"),
    ],
)
def test_a_mistake_is_named_where_it_has_happened(exercise, answer, named):
    result = verdict(exercise, answer, name_mistakes=True)
    assert not result and (result.misconception and result.misconception.name) == named, result


def test_a_cast_is_as_strict_as_that_of_any_version_of_torch():
    numbers = torch.tensor([1.0, -448.0, 464.0, 465.0, -1e9, math.inf, math.nan])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with strict_cast():
            codes = numbers.to(dtype).to(torch.float8_e4m3fn)
            stored = torch.empty(7, dtype=torch.float8_e4m3fn).copy_(numbers.to(dtype))
        assert codes.float().isnan().tolist() == [False, False, False, *[True] * 4] or dtype is torch.bfloat16
        assert codes.float()[4:].isnan().all() and torch.equal(codes.view(torch.uint8), stored.view(torch.uint8))
    assert codes.float()[:3].tolist() == [1.0, -448.0, 448.0]


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
