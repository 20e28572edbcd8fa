"""Lesson 20: what its checks expect is compared with the library and with formulas; right answers by other ways are
taken, wrong ones rejected; what the lesson says of schedules is so; the leaderboard ranks what is valid and fits."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.course.workspace import progress
from llmsys.lessons.lesson_20_pipeline_schedules import right
from llmsys.lessons.lesson_20_pipeline_schedules.checks.split_backward import gradients, plain_halves
from llmsys.lessons.lesson_20_pipeline_schedules.given import given_fill, given_order
from llmsys.lessons.lesson_20_pipeline_schedules.leaderboard import BEST, COSTS, LIMIT, YOURS, judged, leaderboard
from llmsys.lessons.lesson_20_pipeline_schedules.plain import (
    action_of,
    plain_fold,
    plain_step,
    plain_unblock,
    program_of,
    program_texts,
    schedule_of,
    text_of,
    texts_of,
)
from llmsys.parallel import execute, pipeline
from llmsys.parallel.pipeline import (
    Action,
    B,
    Costs,
    Exchange,
    F,
    I,
    Kind,
    Schedule,
    Transfer,
    W,
    linear,
    pair,
    simulate,
    validate,
)
from llmsys.viz.pipeline_schedules.editor import editor
from llmsys.viz.pipeline_schedules.stepped import given_step, in_steps
from tests.lessons import answers_20
from tests.parallel.execute.models import make_microbatches, make_model, unsplit
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, verdict

EVERY = {name: make(4, 8) for name, make in pipeline.SCHEDULES.items()}
SIZES = [(1, 1), (1, 4), (2, 1), (2, 7), (3, 3), (4, 8), (5, 2), (8, 17)]


def answers(of):
    return [pytest.param(id, each, id=f"{id}-{each.__name__}") for id, some in of.items() for each in some]


@pytest.mark.parametrize("exercise, answer", answers(answers_20.RIGHT))
def test_right_answers_by_other_ways_are_taken(exercise, answer):
    assert_taken(exercise, answer)


@pytest.mark.parametrize("exercise, answer", answers(answers_20.WRONG))
def test_wrong_answers_that_nobody_has_named_are_rejected(exercise, answer):
    assert_rejected(exercise, answer)


@pytest.mark.parametrize("exercise", exercises_of("20"))
@pytest.mark.filterwarnings("ignore:The use of .x.T. on tensors")  # wrong answers transpose what has three dimensions
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


def test_the_librarys_own_orders_are_refused():
    def from_the_library(rank, num_ranks, num_microbatches):
        return pipeline.one_f_one_b(num_ranks, num_microbatches).orders[rank]

    def from_zero_bubble(rank, num_ranks, num_microbatches):
        order = pipeline.zb_h1(num_ranks, num_microbatches).orders[rank]
        return [B(rank, each.microbatch) if each.kind is Kind.I else each for each in order if each.kind is not Kind.W]

    for each in (from_the_library, from_zero_bubble, given_order):
        assert verdict("20.one_f_one_b", each).failure.kind == "forbidden"
    assert verdict("20.simulate", given_step).failure.kind == "forbidden"
    assert verdict("20.fill_with_w", given_fill).failure.kind == "forbidden"

    def by_the_library(schedule):
        return pipeline.dualpipe_v(schedule.num_ranks // 2, schedule.num_microbatches // 2)

    def received_early(given):
        return pipeline.programs(pipeline.one_f_one_b(len(given), 8), "early")

    for each in (pipeline.fold, by_the_library, right.fold):
        assert verdict("20.fold", each).failure.kind == "forbidden"
    assert verdict("20.unblock", received_early).failure.kind == "forbidden"
    for each in (execute.split_backward, right.split_backward, answers_20.by_autograd):
        assert verdict("20.split_backward", each).failure.kind == "forbidden"


# What the checks expect


@pytest.mark.parametrize("p, m", SIZES)
def test_right_and_given_orders_are_those_of_the_library(p, m):
    for rank in range(p):
        own = right.one_f_one_b(rank, p, m)
        assert own == given_order(rank, p, m) == list(pipeline.one_f_one_b(p, m).orders[rank])
        assert right.fill_with_w(own, rank) == given_fill(own, rank) == list(pipeline.zb_h1(p, m).orders[rank])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 6))
def test_what_the_check_of_halves_expects_is_written_out_row_by_row(rows, m, n):
    dy, x, weight = (torch.randn(*shape, dtype=torch.float64) for shape in ((*rows, m), (*rows, n), (m, n)))
    expected = gradients(dy, x, weight)
    dw = torch.zeros(m, n, dtype=torch.float64)
    for one, other in zip(dy.reshape(-1, m), x.reshape(-1, n), strict=True):
        dw += one[:, None] * other
    torch.testing.assert_close(expected["dW"], dw)
    torch.testing.assert_close(expected["dx"], (dy[..., None] * weight).sum(-2))
    for split in (right.split_backward, *answers_20.RIGHT["20.split_backward"]):
        for only in ("dx", "dW"):
            torch.testing.assert_close(plain_halves(split)(dy, x, weight, only=only), expected[only])


@pytest.mark.parametrize("split", [right.split_backward, *answers_20.RIGHT["20.split_backward"]])
def test_right_halves_train_a_model_as_the_librarys_do(split):
    schedule, model, tokens = pipeline.zb_h1(2, 4), make_model(4), make_microbatches(4)
    cut = execute.Cut.by_cost(model.config, 2, 7)
    stages = execute.stages_of(model, schedule, cut, backward=split)
    losses, _ = execute.execute_here(schedule, stages, tokens)
    expected_losses, expected = unsplit(model, tokens)
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-12)
    for stage in stages.values():
        for name, weight in stage.weights.items():  # the loss is in float32: strides change what is rounded there
            torch.testing.assert_close(weight.grad, expected[name], rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda dy, x, weight: dy @ weight, "two things, dx and a function that computes dW when it is called; got Te"),
        (lambda dy, x, weight: (lambda: dy @ weight, lambda: dy.T @ x), "to be there at once, as a tensor, and is a f"),
        (lambda dy, x, weight: (dy @ weight, dy.T @ x), "the second one is a Tensor, which cannot be called"),
        (lambda dy, x, weight: (dy @ weight, lambda: None), "must return dW, a tensor; got None"),
    ],
)
def test_halves_that_are_something_else_are_told_what_is_wanted(made, said):
    with pytest.raises(TypeError, match=said):
        plain_halves(made)(*torch.ones(3, 2, 2))


@pytest.mark.parametrize("p, m", [(2, 4), (4, 10), (8, 20)])
def test_what_the_check_of_fold_asks_for_is_what_dualpipe_takes_and_keeps(p, m):
    whole = pipeline.dualpipe(p, m)
    folded = schedule_of(plain_fold(right.fold)(f"dualpipe({p}, {m})"))
    assert folded.orders == pipeline.fold(whole).orders and validate(folded).valid
    for costs in (Costs(), Costs(F=2, I=3, W=1), Costs(FB=2.5)):
        assert simulate(folded, costs).makespan == simulate(whole, costs).makespan
    assert simulate(folded).peak() == simulate(whole).peak() == p + 1


@pytest.mark.parametrize("made", [None, "a schedule", [[F(0, 0)]], pipeline.gpipe])
def test_a_fold_that_returns_something_else_is_told_what_is_wanted(made):
    with pytest.raises(TypeError, match="fold returns a Schedule"):
        plain_fold(lambda schedule: made)("dualpipe(2, 4)")


@pytest.mark.parametrize("transfers", ["apart", "together", "early"])
def test_a_program_is_read_as_it_is_written(transfers):
    for rank, program in enumerate(pipeline.programs(pipeline.one_f_one_b(3, 4), transfers)):
        texts = program_texts(program, rank)
        assert [text for text in texts if text[0] not in "→←"] == [text_of(a) for a in program if isinstance(a, Action)]
        if transfers == "apart":
            assert program_of(texts, rank) == program
        else:
            assert any(" + " in text for text in texts) or rank == 0 and transfers == "early"


def test_programs_that_are_none_are_refused():
    foreign = Exchange((Transfer(F(0, 0), 1, 2),))
    for program, said in (
        (None, "a sequence of actions"),
        ("0F0", "a sequence of actions"),
        ([3], "an Action is wanted"),
        ([foreign], "rank 0 has an exchange that is none of its own"),
    ):
        with pytest.raises(TypeError, match=said):
            program_texts(program, 0)
    with pytest.raises(TypeError, match="a program for each rank"):
        plain_unblock(lambda programs: None)([["0F0"]])


@pytest.mark.parametrize("name", EVERY)
def test_the_right_rule_and_step_run_every_schedule_as_the_library_does(name):
    schedule = EVERY[name]
    costs = Costs(F=2, I=3, W=1, transfer=0.5)
    expected = simulate(schedule, costs).events
    assert in_steps(right.simulate_step, schedule, costs, dependencies=right.dependencies).events == expected
    assert in_steps(None, schedule, costs, dependencies=answers_20.by_a_table).events == expected
    assert validate(schedule, dependencies=right.dependencies).valid


@given(st.integers(1, 6), st.integers(1, 12), st.tuples(*[st.integers(1, 9)] * 3))
@settings(max_examples=60, deadline=None)
def test_what_the_check_of_d_asks_for_is_the_published_formula(p, m, times):
    f, i, w = times
    orders = [right.fill_with_w(right.one_f_one_b(rank, p, m), rank) for rank in range(p)]
    timeline = simulate(Schedule("filled", linear(p), m, orders), Costs(F=f, I=i, W=w))
    assert timeline.peak() == min(p, m)
    if w <= min(f, i) and m >= p:
        assert timeline.makespan == m * (f + i + w) + (p - 1) * (f + i - w)


def test_a_step_on_plain_data():
    given = dict(
        todo=[["0F1"], ["1F0", "1B0"]], free=[1, 0], done={"0F0": [1, 0]}, costs={"transfer": 0.5}, num_stages=2
    )
    lines = [["rank 0: 0F1 from 1 to 2", "rank 1: 1F0 from 1.5 to 2.5"], ["rank 1: 1B0 from 2.5 to 4.5"]]
    assert plain_step(right.simulate_step)(**given, steps=2) == lines
    who = plain_step(right.simulate_step)(**given, told="who")
    assert who == [["rank 0: 0F1", "rank 1: 1F0"]]
    assert given["todo"] == [["0F1"], ["1F0", "1B0"]]


@pytest.mark.parametrize(
    "result",
    [
        None,
        3,
        "ran",
        [3],
        [(0, "0F1", 0, 1)],
        [(0, F(0, 1), 0)],
        [(0, F(0, 1), "a", 1)],
        [(0, F(0, 1), "0", 1)],
        [("0", F(0, 1), 0, 1)],
        [(0, "0F1", 0, 1)],
    ],
)
def test_a_step_that_returns_something_else_is_told_what_is_wanted(result):
    with pytest.raises(TypeError, match=r"a list of \(rank, action, start, end\)"):
        plain_step(lambda *_: result)(todo=[["0F1"]], free=[0], done={}, costs={}, num_stages=1)


@pytest.mark.parametrize("action", [F(0, 3), B(12, 0), I(1, 7, 1), W(3, 14), pair(F(2, 5), B(0, 11, 1))])
def test_an_action_is_read_as_it_is_written(action):
    assert action_of(text_of(action)) == action


def test_what_is_no_action_is_refused():
    for text in ("F3", "2X4", "2F", ""):
        with pytest.raises(ValueError, match="an action reads like 2F5"):
            action_of(text)
    for value in (None, F(0, 1), "0F1", ["0F1"], 7):
        with pytest.raises(TypeError, match="is wanted here, "):
            texts_of(value)


# What the lesson says


def test_dualpipes_formula_holds_where_the_lesson_says_so():
    by_three_gaps = set()
    for f, i, w in itertools.product(range(1, 4), repeat=3):
        bubble = simulate(pipeline.dualpipe(8, 20), Costs(F=f, I=i, W=w)).bubble()
        assert (bubble == 3 * ((f + i + w) + (i + w) - 3 * w)) == (f == i >= w)
        if f >= i:
            by_three_gaps.add(bubble == 3 * (f + f + max(i - w, 0)))
    assert by_three_gaps == {True}


def test_a_rank_in_the_middle_waits_at_the_three_places_that_the_formula_is_made_of():
    for f, i, w, pair_time in ((1, 1, 1, 3), (2, 2, 1, 5), (2, 2, 1, 4), (3, 3, 2, 7)):
        run = simulate(pipeline.dualpipe(8, 20), Costs(F=f, I=i, W=w, FB=pair_time))
        events = run.events[3]
        gaps = [later.start - one.end for one, later in itertools.pairwise(events)]
        assert events[0].start == 3 * f and run.end - events[-1].end == 3 * (i - w)
        assert [gap for gap in gaps if gap] == [pair_time - i - w] * 3


def test_with_a_faster_pair_the_middle_ranks_wait_by_the_formula_and_the_ends_less():
    for pair_time in (2, 2.5):
        bubbles = simulate(pipeline.dualpipe(8, 20), Costs(FB=pair_time)).bubbles
        assert max(bubbles) == bubbles[3] == bubbles[4] == 3 * (pair_time + 2 - 3) and bubbles[0] < bubbles[3]


def test_rank_0_of_1f1b_and_zb_h1_waits_where_the_lesson_says():
    for f, i, w in ((1, 1, 1), (2, 2, 1), (2, 3, 1), (3, 2, 1), (2, 2, 3)):
        costs = Costs(F=f, I=i, W=w)
        for make, first, later in ((pipeline.one_f_one_b, i + w, f), (pipeline.zb_h1, i, max(f - w, 0))):
            row = simulate(make(4, 8), costs).events[0]
            gaps = [after.start - one.end for one, after in itertools.pairwise(row)]
            assert [gap for gap in gaps if gap] == [3 * first] + [later] * 3 * bool(later)


def test_ranks_of_zb_h1_leave_together_and_those_of_zb_h2_as_they_came():
    for make, ends in ((pipeline.zb_h1, [27] * 4), (pipeline.zb_h2, [24, 25, 26, 27])):
        events = simulate(make(4, 8)).events
        assert [row[0].start for row in events] == [0, 1, 2, 3] and [row[-1].end for row in events] == ends


def edited(start, times="1 1 1", **rows):
    shown = editor()
    shown.set(schedule=start, times=times)
    shown.set(**{name: change(shown.values[name]) for name, change in rows.items()})
    return shown.frame


def test_what_is_to_be_tried_in_the_widget_comes_out_as_the_answers_say():
    later = edited("1F1B", rank_3=lambda row: row.replace("B0 F1", "F1 B0"))
    assert (later.time, later.most(3), edited("1F1B").time) == (28, 2, 27)
    assert edited("1F1B", rank_1=lambda row: row.replace("F2 B0", "B0 F2")).time == 30
    first = {"rank_2": lambda row: row.replace("F1 B0", "B0 F1")}
    second = {"rank_3": lambda row: row.replace("B0 F1", "F1 B0")}
    assert not edited("1F1B", **first).ran.waits and not edited("1F1B", **second).ran.waits
    both = edited("1F1B", **first, **second)
    assert [(wait.rank, wait.needs, wait.other) for wait in both.ran.waits] == [(2, I(3, 0), 3), (3, F(2, 1), 2)]
    late = {"rank_3": lambda row: f"{row.replace('W0 ', '')} W0"}
    ends = [(edited("ZB-H1", t).time, edited("ZB-H1", t, **late).time) for t in ("1 1 1", "2 3 1", "2 2 3")]
    assert ends == [(21, 22), (48, 48), (48, 51)] and edited("ZB-H1", **late).most(3) == 5


def test_from_gpipe_to_1f1b_one_begins_with_the_last_rank():
    gpipe, target = pipeline.gpipe(4, 6), pipeline.one_f_one_b(4, 6)
    for ranks, runs in (((3, 2, 1, 0), True), ((0, 1, 2, 3), False)):
        schedule = gpipe
        for rank in ranks:
            schedule = schedule.with_order(rank, target.orders[rank])
            assert validate(schedule).valid == (runs or rank == 3)
            assert not validate(schedule).valid or simulate(schedule).makespan == 27


def test_where_w_is_at_most_half_of_i_zb_v_waits_as_the_lesson_says():
    for f, i, w in ((2, 2, 1), (2, 3, 1), (4, 6, 3), (14.25, 21.25, 6.25)):
        assert simulate(pipeline.zb_v(2, 8), Costs(F=f, I=i, W=w)).bubbles == (2 * (i - w), 2 * (i - w))


def test_question_3_has_the_answer_that_is_given():
    assert simulate(pipeline.dualpipe(8, 20), Costs(F=10, I=10, W=14)).bubble() == 3 * 20


def test_odd_ranks_that_receive_first_repair_1f1b_of_as_many_microbatches_as_ranks():
    for p in range(2, 10):
        for m in (p, p + 1, 2 * p, 2 * p + 3):
            programs = pipeline.programs(pipeline.one_f_one_b(p, m), "apart")
            assert pipeline.circle(programs)
            repaired = right.unblock(programs)
            assert not pipeline.circle(repaired)
            assert [sorted(map(repr, each)) for each in repaired] == [sorted(map(repr, each)) for each in programs]


def test_with_fewer_microbatches_than_ranks_they_do_not_and_one_order_for_all_ranks_does():
    for schedule in (pipeline.one_f_one_b(4, 2), pipeline.gpipe(4, 8)):
        programs = pipeline.programs(schedule, "apart")
        assert pipeline.circle(right.unblock(programs))
        assert not pipeline.circle(answers_20.by_playing_it(programs))


# The leaderboard


def test_the_board_ranks_what_is_valid_and_fits_and_says_why_others_are_not():
    board = leaderboard(pipeline.v_half(4, 12))
    assert [each.name for each in board.entries if each.ok] == [YOURS, "V-Half", "V-Min"]
    assert board[YOURS].makespan == board["V-Half"].makespan == pytest.approx(95.4) and board[YOURS].peak == LIMIT
    assert board["ZB-V"].note == "rank 0 keeps 8, and has room for 6" and "ZB-V" in repr(board)
    assert "<div" in board._repr_html_() and "Not ranked: 1F1B, rank 0 keeps 8" in board._repr_html_()
    for other in board.entries:
        assert other.ok == (other.peak <= LIMIT)


def test_a_schedule_that_cannot_be_run_or_has_another_size_is_not_ranked():
    good = pipeline.v_min(4, 12)
    swapped = good.with_order(2, [good.orders[2][-1], *good.orders[2][:-1]])
    shorter = good.with_order(0, good.orders[0][:-1])
    for schedule, why in (
        (swapped, "it cannot be run: "),
        (shorter, "it cannot be run: "),
        (pipeline.v_min(4, 8), "it has 4 ranks, 8 stages, 8 microbatches and 1 replicas"),
        (pipeline.dualpipe(8, 16), "it has 8 ranks"),
        ("v-min", "a Schedule is wanted, got str"),
    ):
        entry = judged(YOURS, schedule)
        assert not entry.ok and why in entry.note


def test_the_best_is_kept_and_shown_beside_a_worse_one(tmp_path, monkeypatch):
    kept = progress.Progress()
    monkeypatch.setattr(progress, "load", lambda: kept)
    monkeypatch.setattr(
        progress, "best", lambda id, value: kept.bests.update({id: min(value, kept.bests.get(id, value))})
    )
    leaderboard(pipeline.v_half(4, 12))
    board = leaderboard(pipeline.v_min(4, 12))
    assert board[BEST].makespan == pytest.approx(95.4) and board[YOURS].makespan == pytest.approx(107)
    assert BEST not in [each.name for each in leaderboard(pipeline.v_half(4, 12)).entries]


def test_the_board_can_be_beaten():
    """By a plain scheduler: through time, forwards while there is room, W where a rank would wait."""
    assert judged(YOURS, _greedy(room=4, slack=0.6, at_once=5)).makespan < 95


def _greedy(room, slack, at_once):
    placement, microbatches = pipeline.v_shaped(4), 12
    done, free, kept, orders = {}, [0.0] * 4, [0] * 4, [[] for _ in range(4)]
    todo = [[make(s, m) for make in (F, I, W) for m in range(microbatches) for _, s in placement.stages(rank)]
            for rank in range(4)]  # fmt: skip

    def under_way(rank, below, until):
        return sum(a.kind is Kind.F and a.stage < below for a in orders[rank]) - sum(
            a.kind is until and a.stage < below for a in orders[rank]
        )

    while any(todo):
        for rank in sorted(range(4), key=lambda rank: free[rank]):
            found = []
            for action in todo[rank]:
                needed = pipeline.dependencies(action, 8)
                if any(each not in done for each in needed):
                    continue
                if action.kind is Kind.F:
                    entered = action.stage == 0 and under_way(0, 1, Kind.I) >= at_once
                    early = action.stage < 4 and rank != 3 and kept[rank] + 2 > LIMIT
                    if kept[rank] == LIMIT or entered or (early and under_way(rank, 4, Kind.I) >= room):
                        continue
                start = max(
                    [free[rank], *(done[each][0] + COSTS.transfer_time(done[each][1], rank) for each in needed)]
                )
                key = start if action.kind is not Kind.W else max(start, free[rank] + slack)
                place = {Kind.F: 0, Kind.I: 1, Kind.W: 2}[action.kind]
                found.append((round(key, 6), place, -action.stage, action.microbatch, start, action))
            if found:
                *_, start, action = min(found, key=lambda each: each[:4])
                free[rank] = start + COSTS.time(action)
                done[action] = free[rank], rank
                todo[rank].remove(action)
                orders[rank].append(action)
                kept[rank] += {Kind.F: 1, Kind.I: 0, Kind.W: -1}[action.kind]
                break
    return Schedule("greedy", placement, microbatches, orders)
