"""The pictures of lesson 11: they show what was simulated, and say in words what the lesson's text says of them."""

from dataclasses import replace

import pytest

from llmsys.bench import Record
from llmsys.lessons.lesson_11_disaggregation import right
from llmsys.lessons.lesson_11_disaggregation.wire import lanes
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Placed, Placement
from llmsys.viz.disaggregation import cluster, goodputs, interference, order, overview, stepper, two_gpus
from llmsys.viz.disaggregation.overview import longest_wait, served
from llmsys.viz.disaggregation.stepper import describe, draw


def test_the_overview_says_the_waits_that_its_logs_have(assert_legible):
    found = [1e3 * longest_wait(served(each)) for each in (Placement(colocated=1), Placement(prefill=1, decode=1))]
    shown = overview()
    alt = shown.alt
    assert_legible(shown.svg)
    assert f"for {found[0]:.0f} ms at the longest" in alt and f"is {found[1]:.0f} ms" in alt and found[1] < found[0] / 3


def test_the_stepper_says_what_the_text_says_of_it():
    shown = stepper()

    def ends(rate, bandwidth):
        shown.set(rate=rate, bandwidth=bandwidth)
        frame = shown.frames[-1]
        return {name: (frame.met(name)[1], [frame.late(each) for each in frame.lives[name]]) for name in frame.lives}

    assert {name: met for name, (met, _) in ends(4, 50e9).items()} == {"colocated": 14, "disaggregated": 14}
    at_12 = ends(12, 50e9)
    assert at_12["colocated"][1].count("TPOT") == 10 and at_12["disaggregated"] == (13, [""] * 13 + ["TTFT"])
    assert ends(20, 50e9)["disaggregated"][1] == [""] * 6 + ["TTFT"] * 8
    for rate in (4, 12, 20):
        assert ends(rate, 1.25e9)["disaggregated"][0] == 0


@pytest.mark.parametrize("rate, bandwidth", [(4, 50e9), (12, 50e9), (20, 1.25e9)])
def test_every_frame_is_legible_and_says_in_words_how_many_have_ended(rate, bandwidth, assert_legible):
    shown = stepper()
    shown.set(rate=rate, bandwidth=bandwidth)
    for frame in shown.frames:
        ended = sum(each.ended <= frame.now for each in frame.lives["colocated"])
        assert f"colocated: {ended} of 14 have ended" in describe(frame)
        assert_legible(draw(frame).markup())


def test_the_stepper_starts_at_the_end_and_shows_what_a_slow_link_costs():
    shown = stepper()
    assert shown.frame.now == shown.frame.end
    fast = shown.frame.sent
    shown.set(bandwidth=1.25e9)
    slow = shown.frame
    assert slow.now == pytest.approx(slow.end) and set(fast["colocated"]) == set(slow.sent["colocated"]) == {0.0}
    assert len(slow.sent["disaggregated"]) == 14 and max(fast["disaggregated"]) < 0.01 < min(slow.sent["disaggregated"])
    for sent, each in zip(slow.sent["disaggregated"], slow.lives["disaggregated"], strict=True):
        assert each.first_token + sent < each.ended
    boxes = draw(slow).markup().count("line-green")
    assert boxes == 14 + 1  # and one in the key
    shown.set(bandwidth=50e9)
    assert draw(shown.frame).markup().count("line-green") == 1


def test_charts_say_their_numbers_and_refuse_what_they_cannot_draw(assert_legible):
    shown = interference([0, 8], {"one": [(0.005, 0.01), (0.0134, 0.02)]})
    assert "13.4 at 8" in shown.alt
    with pytest.raises(ValueError, match="must have a pair for each of 2 rates, got 1"):
        interference([0, 8], {"one": [(0.005, 0.01)]})
    placed = Placed(Placement(prefill=1, decode=1), 12.0, 0.2, 0.005)
    said = goodputs([("a", placed)], Limits(0.5, 0.01)).alt
    assert "6.0 a second and GPU, at 40% of the limit to TTFT and 50%" in said
    with pytest.raises(ValueError, match="at least one placement"):
        goodputs([], Limits(0.5, 0.01))
    with pytest.raises(ValueError, match="a TTFT and a TPOT"):
        goodputs([("a", placed)], Limits(0.5))
    bars = [(each.lane, each.layer, each.start, each.end) for each in
            lanes(right.transfer_order(4, 2), compute=1, send=0.5)]  # fmt: skip
    shown = order([("yours", bars)])
    assert "yours: 4.5" in shown.alt
    assert_legible(shown.svg)
    with pytest.raises(ValueError, match="at least one order"):
        order([])


class Said:
    """A simulator's result."""

    def __init__(self, share):
        self._share = share

    def attainment(self, limits):
        return self._share


def made_up(*names) -> Record:
    rows = [{"sweep": "link", "name": "nccl", "bytes": 1 << size, "gbps": 7.0 * size} for size in (16, 21)]
    for rate in (32.0, 20.0):
        for name in names:
            moved = {"moved_bytes": 5, "moved_gbps": rate} if name == "divided" else {"moved_bytes": 0, "moved_gbps": 0}
            times = {"ttft_ms": [100.0, 400.0, 501.0, 20.0], "tpot_ms": [9.0, 10.5, 4.0, 10.0]}
            rows.append({"sweep": "served", "name": name, "rate": rate, "gpus": 2, **times, **moved})
    return Record("disaggregate", "two made-up GPUs", {}, "", rows)


def test_what_two_gpus_did_is_said_of_each_design_and_of_the_link():
    record = made_up("colocated", "divided")
    shown = two_gpus(record, [Said(0.5), Said(1.0)] * 2, Limits(0.5, 0.010))
    assert "colocated 5.0 at 20 a second (simulated 5.0), 8.0 at 32 a second (simulated 8.0)" in shown.alt
    assert "divided 5.0 at 20 a second (simulated 10.0), 8.0 at 32 a second (simulated 16.0)" in shown.alt
    assert "alone, 65.5 kB 112, alone, 2.1 MB 147, caches, 32 a second 32, caches, 20 a second 20" in shown.alt
    assert "colocated 10.0 at 20" in two_gpus(record, [Said(0)] * 4, Limits(0.6, 0.011)).alt
    one = two_gpus(made_up("colocated"), [Said(0.5)] * 2, Limits(0.5, 0.010))
    assert "divided" not in one.alt
    with pytest.raises(ValueError, match="results must be one for each of 4 served rows"):
        two_gpus(record, [Said(0.5)], Limits(0.5, 0.010))


def test_the_cluster_has_a_line_for_each_route_and_says_where_it_ends():
    row = {"sweep": "a trace", "name": "random", "engines": 1, "goodput": 0.5, "hit_share": 0.1}
    rows = [row, row | {"engines": 8, "goodput": 0.41, "hit_share": 0.07},
            row | {"name": "prefix-aware", "weight": 4.0}, row | {"name": "prefix-aware", "weight": 4.0, "engines": 8,
                                                                 "goodput": 0.83, "hit_share": 0.4}]  # fmt: skip
    rows += [each | {"sweep": "another", "goodput": 3 * each["goodput"]} for each in rows]
    record = Record("routing", "simulated GPU", {}, "2026-01-01", rows)
    shown = cluster(record)
    assert "at random: 0.50 requests a second and GPU of 1 engine, 0.41 of 8, where 7% of" in shown.alt
    assert "by (5), w = 4: 0.50 requests a second and GPU of 1 engine, 0.83 of 8, where 40%" in shown.alt
    upper, lower = shown.figure.axes[:2], shown.figure.axes[2:]
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 3 * 0.83 for axes in upper), "all is to be seen"
    assert [list(line.get_ydata()) for line in lower[0].lines] == [pytest.approx([10, 7]), pytest.approx([10, 40])]
    for wrong in ([], [row | {"name": str(n)} for n in range(5)]):
        with pytest.raises(ValueError, match="rows of 1 to 4 routes"):
            cluster(replace(record, rows=wrong))
