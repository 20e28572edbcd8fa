"""Schedules go into text and CSV and come back as they were."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.parallel.pipeline import (
    SCHEDULES,
    Action,
    B,
    F,
    Kind,
    Placement,
    Schedule,
    chimera,
    from_csv,
    from_text,
    interleaved,
    one_f_one_b,
    pair,
    parse,
    to_csv,
    to_text,
    validate,
    zb_v,
)
from tests.parallel.pipeline import by_hand

NUMBER = st.integers(0, 300)
SINGLE = st.builds(Action, st.sampled_from([Kind.F, Kind.B, Kind.I, Kind.W]), NUMBER, NUMBER, st.integers(0, 1))
PAIR = st.builds(
    pair, *(st.builds(Action, st.just(kind), NUMBER, NUMBER, st.integers(0, 1)) for kind in (Kind.F, Kind.B))
)


@given(st.one_of(SINGLE, PAIR))
def test_an_action_comes_back_from_what_it_prints(action):
    assert parse(str(action)) == action
    assert sorted([action, action]) == [action, action]


@given(by_hand.schedules())
@settings(max_examples=50)
def test_a_schedule_comes_back_from_text_and_csv(schedule):
    for again in (from_text(to_text(schedule)), from_csv(to_csv(schedule), schedule.name)):
        assert again == schedule
        assert again.num_replicas == schedule.num_replicas


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_placement_that_is_read_has_its_name(name):
    schedule = SCHEDULES[name](4, 8)
    assert from_csv(to_csv(schedule)).placement.name == schedule.placement.name


def test_the_notation_is_torchs_with_a_suffix_for_the_second_replica():
    assert to_csv(one_f_one_b(2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"
    assert to_text(one_f_one_b(1, 1)) == "1f1b on 1 rank, 1 microbatch\nrank 0: 0F0 0B0\n"
    assert str(pair(F(0, 3), B(7, 1))) == "(0F3;7B1)OVERLAP_F_B"
    assert [str(action) for action in chimera(2, 2).orders[1]] == ["0F1r1", "1F0", "1B0", "0B1r1"]
    assert to_csv(zb_v(1, 1)) == "0F0,1F0,1I0,1W0,0I0,0W0\n"


def test_text_may_come_without_its_head_and_with_empty_lines():
    schedule = interleaved(2, 4)
    rows = to_text(schedule).splitlines()[1:]
    bare = "\n\n".join(row.partition(": ")[2] for row in rows)
    assert from_text(bare).orders == from_text("\n".join(rows)).orders == schedule.orders
    assert from_csv(to_csv(schedule).replace(",", ", ,") + "\n\n").orders == schedule.orders
    assert from_csv(to_csv(schedule).replace("\n", "\r")).orders == schedule.orders


def test_a_placement_of_ones_own_is_read():
    uneven = Schedule(
        "own", Placement("own", ((0, 1, 1),)), 1, [[F(0, 0), B(0, 0)], [F(1, 0), F(2, 0), B(2, 0), B(1, 0)]]
    )
    assert from_csv(to_csv(uneven), "own") == uneven


def test_what_is_missing_in_a_schedule_is_missing_in_what_is_read():
    short = one_f_one_b(1, 2).with_order(0, [F(0, 0), B(0, 0)])
    assert from_text(to_text(short)) == short
    assert {each.kind for each in validate(from_text(to_text(short))).problems} == {"missing"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rank 1: 1F0 1B0\nrank 0: 0F0 0B0", "where rank 0 should be is 'rank 1: 1F0 1B0'"),
        ("rank 0: 0F0 0B0\nrank 0: 1F0 1B0", "where rank 1 should be is 'rank 0: 1F0 1B0'"),
        ("rank 0: 0F0 0B0\nrank 1 1F0 1B0", "rank 1, cell 1: 'rank' is no action"),
        ("rank 0: 0F0 0B0\nrank 1:\nrank 2: 1F0 1B0", "rank 1, cell 1: 'rank' is no action"),
        ("mine on 2 ranks, 1 microbatch\n0F0 0B0", "a row for each rank; there are 1, and the text begins 'mine on 2"),
        ("0F99999999 0B99999999", "microbatches must have actions; there are 100000000, and 2 actions"),
        ("mine on 1 rank, 99999999 microbatches\n0F0 0B0", "there are 99999999, and 2 actions"),
    ],
)
def test_text_whose_parts_do_not_agree_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        from_text(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0F0,0X0\n", "rank 0, cell 2: '0X0' is no action: one is stage, kind and microbatch, as in 2F5"),
        ("0F0,0B0\n1F0,1B\n", "rank 1, cell 2: '1B' is no action"),
        ("0F0,0B0,0FB0\n", "'0FB0' is no action"),
        ("(0F0;0F1)OVERLAP_F_B\n", "rank 0, cell 1: a pair is an F and a B, in this order; got 0F0 and 0F1"),
        ("0F0,0B0\n1F0,0F1\n", "stage 0 is on rank 0 and, with 0F1, on rank 1"),
        ("0F0,0B0\n2F0,2B0\n", "no rank does anything for stage 1"),
        ("0F0,1B1r1\n", "no rank does anything for stage 1"),
        ("\n \n", "the text has no action"),
        ("0F0," + "x" * 200_000, "the text is no CSV: field larger than"),
    ],
)
def test_text_that_is_no_schedule_is_refused_with_the_place(text, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        from_csv(text)
