"""What cannot be made is refused before anything is made, and the error says what would work."""

import re

import numpy as np
import pytest

from llmsys.parallel.pipeline import (
    SCHEDULES,
    B,
    F,
    Placement,
    Schedule,
    bidirectional,
    chimera,
    dualpipe,
    dualpipe_v,
    interleaved,
    linear,
    looped,
    make_schedule,
    pair,
    split_layers,
    v_shaped,
)


def refused(words: str):
    return pytest.raises(ValueError, match=words)


def test_dualpipe_needs_twice_as_many_microbatches_as_ranks():
    with refused("num_microbatches must be at least twice the 8 ranks.*; got 14, try 16"):
        dualpipe(8, 14)
    with refused("num_microbatches must be at least the 8 stages.*; got 7, try 8"):
        dualpipe_v(4, 7)
    assert dualpipe(8, 16).num_microbatches == 16 and dualpipe_v(4, 8).num_microbatches == 8


@pytest.mark.parametrize("generator", [chimera, dualpipe])
def test_two_directions_need_even_numbers(generator):
    with refused("num_ranks must be even.*; got 5, try 4 or 6"):
        generator(5, 20)
    with refused("num_microbatches must be even.*; got 17, try 16 or 18"):
        generator(4, 17)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_what_an_error_says_to_try_is_accepted(name):
    for ranks in range(1, 7):
        for microbatches in range(1, 4 * ranks):
            try:
                SCHEDULES[name](ranks, microbatches)
            except ValueError as error:
                argument, tried = str(error).split()[0], re.findall(r"\d+", str(error).partition("try ")[2])
                for number in map(int, tried):
                    if argument == "num_ranks":
                        assert number > 0 and SCHEDULES[name](number, 4 * number)
                    else:
                        assert SCHEDULES[name](ranks, number)


def test_rounds_of_an_interleaved_schedule_must_come_out_even():
    with refused("num_microbatches must come out even in 2 rounds of at least 4, one a rank; got 9, try 8 or 12"):
        interleaved(4, 9)
    with refused("chunks must be a whole number of at least 1, got 0"):
        interleaved(4, 8, 0)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("wrong", [0, -2, 2.0, True, "4", None])
def test_numbers_must_be_whole_and_at_least_1(name, wrong):
    with refused("num_ranks must be a whole number of at least 1, got"):
        SCHEDULES[name](wrong, 8)
    with refused("num_microbatches must be a whole number of at least"):
        SCHEDULES[name](2, wrong)


def test_a_name_that_is_none_is_answered_with_the_names():
    with refused("name must be one of gpipe, 1f1b, .*dualpipe-v; got 'zbv'"):
        make_schedule("zbv", 4, 8)
    assert make_schedule("zb-v", 4, 8) == SCHEDULES["zb-v"](4, 8)


def test_a_placement_has_each_rank_and_as_many_stages_for_each_replica():
    assert linear(3).ranks == ((0, 1, 2),)
    assert looped(2, 3).ranks == ((0, 1, 0, 1, 0, 1),)
    assert v_shaped(3).ranks == ((0, 1, 2, 2, 1, 0),)
    assert bidirectional(3).ranks == ((0, 1, 2), (2, 1, 0))
    assert v_shaped(3).stages(1) == ((0, 1), (0, 4)) and bidirectional(4).stages(1) == ((0, 1), (1, 2))
    for ranks, words in [
        ((), "ranks must have a row for at least one replica"),
        (((),), "ranks must have a row"),
        (((0, 1), (0,)), "ranks must have as many stages for each replica"),
        ((0, 1), r"ranks must be a table of whole numbers, .* as in \(\(0, 1\),\); got \(0, 1\)"),
        (((0, "1"),), "ranks must be a table of whole numbers"),
        (((0.0, 1.0),), "ranks must be a table of whole numbers"),
        (((0, 2),), r"ranks must be counted from 0, and each must have a stage; got ranks \[0, 2\]"),
    ]:
        with refused(words):
            Placement("wrong", ranks)


def test_a_schedule_has_an_order_for_each_rank_and_as_many_microbatches_for_each_replica():
    with refused("orders must have a list of actions for each of the 2 ranks, got 1"):
        Schedule("short", linear(2), 1, [[F(0, 0), B(0, 0)]])
    with refused("num_microbatches must be a multiple of the 2 replicas, each takes as many; got 3"):
        Schedule("odd", bidirectional(2), 3, [[], []])
    whole = Schedule("both", bidirectional(2), 6, [[], []])
    assert [whole.replica(m) for m in range(6)] == [0, 0, 0, 1, 1, 1]
    assert (whole.microbatches(0), whole.microbatches(1)) == (range(3), range(3, 6))


def test_a_schedule_is_made_of_actions():
    with refused(r"orders must be of actions, as F\(0, 1\) or parse\('0F1'\) makes them; rank 0 has '0F0'"):
        Schedule("text", linear(1), 1, [["0F0", "0B0"]])


def test_numpys_whole_numbers_are_whole_numbers():
    assert chimera(np.int64(4), np.int64(8)) == chimera(4, 8)
    assert split_layers(np.int64(4), np.int64(2)) == split_layers(4, 2)


def test_a_pair_is_a_forward_and_a_backward():
    with refused("a pair is an F and a B, in this order; got 0B0 and 0F1"):
        pair(B(0, 0), F(0, 1))
