"""The model of an SM: costs by hand, times by hand, bounds for every order, wrong orders, and the recorded H100."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.bench import recorded
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.sm import (
    CLOCK,
    ENGINES,
    ORDERS,
    Costs,
    Deadlock,
    Load,
    Output,
    Pass,
    Race,
    Scores,
    Softmax,
    Turn,
    Wait,
    attention_costs,
    fa1_order,
    fa2_order,
    overlapped_order,
    ping_pong_order,
    producer_order,
    run,
)

SIMPLE = Costs(load=10, scores=100, softmax=150, output=100)
COSTS = st.builds(Costs, *[st.integers(1, 1000)] * 4)


def test_costs_follow_from_the_data_sheet():
    costs = attention_costs(64, 128, 128, 2)
    assert (costs.scores, costs.output) == (512, 512)  # 2 · 64 · 128 · 128 / 4096
    assert costs.softmax == 512 + 288  # exponentials; 224 for scores and 64 for O
    h100 = DEVICES["H100 SXM"]
    per_cycle = h100.sms * CLOCK
    assert 2 * 64 * 128 * 128 / costs.scores * per_cycle == pytest.approx(h100.flops["bfloat16"], rel=1e-3)
    assert 64 * 128 / 512 * per_cycle == pytest.approx(h100.exponentials)
    assert attention_costs(D=128, itemsize=1).scores == 256 == attention_costs(D=64).scores
    assert attention_costs(D=64).load * 2 == costs.load
    with pytest.raises(ValueError, match="itemsize must be 1"):
        attention_costs(itemsize=4)
    with pytest.raises(ValueError, match="D must be at least 1, got 0"):
        attention_costs(D=0)


# Times that can be found by hand


@given(tiles=st.integers(1, 5), warpgroups=st.integers(1, 3), costs=COSTS)
def test_in_fa1_s_order_the_cycles_are_the_sum_of_all_costs(tiles, warpgroups, costs):
    each = warpgroups * (costs.scores + costs.softmax + costs.output)
    timeline = run(fa1_order(tiles, warpgroups), costs)
    assert timeline.cycles == pytest.approx(tiles * (2 * costs.load + each))
    assert timeline.utilisation("tensor") == pytest.approx(
        tiles * warpgroups * (costs.scores + costs.output) / timeline.cycles
    )


@given(tiles=st.integers(1, 6), warpgroups=st.integers(1, 3))
def test_warpgroups_that_begin_together_never_overlap_products_with_softmaxes(tiles, warpgroups):
    timeline = run(producer_order(tiles, warpgroups), SIMPLE)
    assert timeline.cycles == pytest.approx(10 + tiles * warpgroups * 350)  # the first K, then no copy is waited for
    starts = {span.start for span in timeline.spans if span.label == "P0"}
    assert len(starts) == 1


def test_warpgroups_that_begin_half_a_step_apart_overlap():
    costs = Costs(load=1, scores=100, softmax=200, output=100)
    apart = run(producer_order(50, 2), costs, begin=[10, 210])
    assert apart.cycles < run(producer_order(50, 2), costs).cycles * 0.55
    assert apart.utilisation("tensor") > 0.95


@settings(max_examples=30)
@given(begin=st.integers(0, 700))
def test_with_turns_it_does_not_matter_when_warpgroups_begin(begin):
    for order in (ping_pong_order, overlapped_order):
        timeline = run(order(40, 2), SIMPLE, begin=[0, begin])
        assert timeline.cycles <= begin + 10 + 40 * 400 + 350  # 400: the products of both, a step


def test_a_turn_that_ends_before_the_scores_are_there_is_worth_no_more_than_none():
    costs = attention_costs(D=128)
    held, started, none = (
        run(overlapped_order(33, 2, until), costs).utilisation("tensor") for until in ("scores", "started", "")
    )
    assert held > 0.95 and started == none < 0.8
    with pytest.raises(ValueError, match="until must be"):
        overlapped_order(2, 2, "tomorrow")


def test_two_warpgroups_that_share_an_engine_take_twice_as_long():
    # One starts S at 10 and the other at 60: alone for 50, together for 100, alone for 50.
    timeline = run(producer_order(1, 2), SIMPLE, begin=[0, 60])
    scores = [(span.start, span.end) for span in timeline.spans if span.label == "S0"]
    assert scores == [(10, 160), (60, 210)]
    assert timeline.names == ("warpgroup 0", "warpgroup 1", "producer")
    waits = [(w.warpgroup, w.label, w.start, w.end) for w in timeline.waits if w.warpgroup == 1]
    assert waits[:2] == [(1, "its beginning", 0, 60), (1, "S0", 60, 210)]


def test_the_overlap_within_a_warpgroup_hides_the_shorter_of_softmax_and_product():
    tiles = 40
    alone = run(producer_order(tiles, 1), SIMPLE).cycles
    assert run(overlapped_order(tiles, 1), SIMPLE).cycles == pytest.approx(alone - (tiles - 1) * 100)


@settings(max_examples=60)
@given(
    order=st.sampled_from(sorted(ORDERS)), tiles=st.integers(0, 7), warpgroups=st.integers(1, 3), costs=COSTS,
    slots=st.integers(2, 4), begin=st.lists(st.integers(0, 2000), max_size=1),
)  # fmt: skip
def test_no_order_is_faster_than_its_busiest_engine_and_all_work_is_done_once(
    order, tiles, warpgroups, costs, slots, begin
):
    timeline = run(ORDERS[order](tiles, warpgroups), costs, slots=slots, begin=begin)
    total = {
        "tensor": warpgroups * tiles * (costs.scores + costs.output),
        "exp": warpgroups * tiles * costs.softmax,
        "copy": 2 * tiles * costs.load,
    }
    for engine in ENGINES:
        assert timeline.utilisation(engine) * timeline.cycles == pytest.approx(total[engine])
        assert total[engine] <= timeline.cycles + 1e-6
    assert timeline.seconds == timeline.cycles / CLOCK
    found = sorted((span.label, span.warpgroup) for span in timeline.spans)
    assert len(found) == len(set(found)) == tiles * (2 + 3 * warpgroups)
    one = costs.scores + costs.softmax + costs.output
    step = max(costs.softmax, costs.output) if order == "overlapped_held" else one
    chain = costs.load + tiles * step if tiles else 0
    assert timeline.cycles >= chain - 1e-6
    for span in timeline.spans:  # what needs what
        ends = {(s.label, s.warpgroup): s.end for s in timeline.spans}
        i = span.label[1:]
        needs = {"S": "K", "P": "S", "O": "P"}.get(span.label[0])
        if needs:
            end = [e for (label, w), e in ends.items() if label == needs + i and (needs == "K" or w == span.warpgroup)]
            assert span.start >= end[0] - 1e-6


@pytest.mark.parametrize("D", [64, 128])
def test_the_orders_get_faster_from_fa1_to_fa3(D):
    cycles = [run(order(32, 2), attention_costs(D=D)).cycles for order in ORDERS.values()]
    assert list(ORDERS) == ["fa1", "fa2", "independent", "ping_pong", "overlapped_held"]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[0] > 2 * cycles[-1]


def test_the_h100_s_recorded_kernels_are_below_the_model_and_ranked_like_it():
    rows = {
        (row["name"], row["D"]): row["tflops"] / 989.5
        for row in recorded("attention", "H100").rows
        if row["sweep"] == "table" and row["T"] == 16384 and not row["causal"]
    }
    model = {
        (name, D): run(order(64, 2), attention_costs(D=D)).utilisation("tensor")
        for name, order in (("FA2", fa2_order), ("hopper", overlapped_order))
        for D in (64, 128)
    }
    assert all(rows[key] < bound for key, bound in model.items())
    assert sorted(model, key=model.get) == sorted(model, key=rows.get)


# Orders that are wrong


def without(order, *left_out):
    return [[action for action in program if action not in left_out] for program in order]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (without(producer_order(2, 2), Wait("K", 1)), "warpgroup 0 starts S1 and has not waited for K1"),
        (without(producer_order(2, 2), Wait("V", 1)), "warpgroup 0 starts O1 and has not waited for V1"),
        (without(producer_order(2, 2), Wait("S", 0)), "warpgroup 0 computes P0 and has not waited for S0"),
        (without(producer_order(2, 2), Wait("O", 0)), "warpgroup 0 starts O1, .*rescale.*has not waited for O0"),
        (without(producer_order(2, 2), Wait("O", 1)), "warpgroup 0 ends and has not waited for O1"),
        ([[Load("K", 0), Load("V", 0), Wait("V", 0), Output(0), Wait("K", 0), Scores(0), Wait("S", 0), Softmax(0)]],
         "warpgroup 0 starts O0 and has not computed P0"),
    ],
)  # fmt: skip
def test_using_something_that_was_not_waited_for_is_a_race(order, message):
    with pytest.raises(Race, match=message):
        run(order, SIMPLE)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (without(producer_order(2, 1), Softmax(1)), r"once each; it has Scores of \[0, 1\], Softmax of \[0\]"),
        (without(ping_pong_order(2, 2), Turn()), "warpgroup 0 passes on a turn that it does not have"),
        ([[Load("K", 0), Load("K", 0)]], "producer loads K0, which has been loaded"),
        ([[Load("Q", 0)]], "must name one of K, V"),
        ([["Load K0"]], "no action of llmsys.hardware.sm"),
        ([[Load("K", 0), Load("K", 1), Load("V", 0), Load("V", 1), Wait("K", 0), Wait("K", 1), Scores(0), Scores(1),
           Softmax(0), Softmax(1), Output(0), Output(1)]],
         "warpgroup 0 starts S1 while it holds S0: registers have room for one"),
    ],
)  # fmt: skip
def test_programs_that_do_not_compute_attention_are_refused(order, message):
    with pytest.raises(ValueError, match=message):
        run(order, SIMPLE)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (without(producer_order(2, 1), Load("V", 1)), "warpgroup 0 waits for V1, which nobody loads"),
        (without(ping_pong_order(2, 2), Pass()), "warpgroup 0 waits for its turn, which warpgroup 1 has not passed on; "
         "warpgroup 1 waits for its turn, which warpgroup 0 has not passed on"),
        ([[Load("K", 0), Wait("K", 0), Wait("S", 0), Scores(0), Softmax(0), Output(0)]],
         "warpgroup 0 waits for S0, which it has not started"),
        ([[Load("K", 0), Load("K", 1), Load("K", 2), *producer_order(3, 1)[0]],
          [action for action in producer_order(3, 1)[1] if action.tile == "V"]],
         "warpgroup 0 waits for a slot for K2: warpgroup 0 has not waited for S0"),
        ([*producer_order(1, 1)[:1], [Wait("K", 0), Load("K", 0), Load("V", 0)]],
         "warpgroup 0 waits for K0, which producer has not loaded yet; producer waits for K0, which producer"),
    ],
)  # fmt: skip
def test_deadlocks_say_who_waits_for_what(order, message):
    with pytest.raises(Deadlock, match=message):
        run(order, SIMPLE)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        run(fa2_order(1, 1), SIMPLE, slots=0)
    with pytest.raises(ValueError, match="begin must have at most a number for each of the 1 programs, got 2"):
        run(fa2_order(1, 1), SIMPLE, begin=[1, 2])
    with pytest.raises(ValueError, match="engine must be one of tensor, exp, copy, got 'mma'"):
        run(fa2_order(1, 1), SIMPLE).utilisation("mma")
    assert run([], SIMPLE).cycles == 0 == run([], SIMPLE).utilisation("copy")
