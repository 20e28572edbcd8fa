"""The charts of lesson 10 draw the numbers that they are given, and the opening picture those of the step times."""

from types import SimpleNamespace

import pytest

from llmsys.bench.record import Record
from llmsys.serving.goodput import Limits
from llmsys.viz.chunked_prefill import attained, budgets, overview, recorded_goodput, recorded_runs, stalls
from llmsys.viz.chunked_prefill.overview import BUDGET, PROMPT, TIMES, first_token, steps_of


def record(*runs):
    rows = []
    for n, (name, rate) in enumerate(runs):
        row = {"sweep": "served", "name": name, "rate": rate}
        row |= {f"{what}_p{at}_ms": 10.0 * (n + 1) + at for what in ("ttft", "tpot") for at in (50, 90)}
        rows.append(row)
    return Record("goodput", "NVIDIA H200", {}, "2026-01-01", [{"sweep": "sizes", "sizes": []}, *rows])


class Simulated:
    def __init__(self, row):
        self.row = row

    def ttft(self, at):
        return (self.row[f"ttft_p{at}_ms"] + 5) / 1e3

    tpot = ttft


def test_a_prompt_in_pieces_and_whole_take_as_long_and_stall_differently():
    whole, pieces = steps_of(PROMPT), steps_of(BUDGET)
    assert whole[-1][1] == pytest.approx(pieces[-1][1]) and len(whole) == len(pieces)
    assert sum(n for *_, n in whole) == sum(n for *_, n in pieces) == PROMPT
    assert max(b - a for a, b, _ in pieces) == pytest.approx(1e3 * (TIMES.mixed.fixed + BUDGET * TIMES.mixed.per_token))
    picture = overview()
    assert f"{max(b - a for a, b, _ in whole):.0f} ms for their next token" in picture.alt
    assert f"read {first_token(pieces) - first_token(whole):.0f} ms later" in picture.alt


def test_the_opening_picture_can_be_read(assert_legible):
    assert_legible(overview().svg)


def test_who_is_within_the_limits_has_a_line_for_each_policy():
    panels = {"means": {"orca": {5: 1.0, 10: 0.5}, "static": {5: 0.1}}, "gaps": {"orca": {5: 0.4}, "static": {5: 0.1}}}
    picture = attained(panels)
    left, right = picture.figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["means", "gaps"]
    assert [list(line.get_ydata()) for line in left.get_lines()[:2]] == [[100, 50], [10]]
    assert "means, orca: 100% at 5, 50% at 10" in picture.alt
    for nothing in ({}, {"means": {}}, {"means": {"orca": {}}}):
        with pytest.raises(ValueError, match="panels must have"):
            attained(nothing)


def test_budgets_are_bars_and_one_without_a_rate_says_none(words):
    picture = budgets({256: 12.34, 512: 20.0, 4096: 0.0})
    heights = [patch.get_height() for patch in picture.figure.axes[0].patches]
    assert heights == [12.34, 20.0, 0.0] and "none" in words(picture) and "The best is 512." in picture.alt
    with pytest.raises(ValueError, match="rates must have"):
        budgets({})


def test_stalls_are_drawn_in_milliseconds(words):
    picture = stalls([(256, 0.01, 0.3), (512, 0.02, 0.25)])
    lines = [list(line.get_ydata()) for line in picture.figure.axes[0].get_lines()]
    assert lines == [[300, 250], [10, 20]] and "256 tokens: stall 10 ms, read after 300" in picture.alt
    assert "the longest stall" in words(picture)
    with pytest.raises(ValueError, match="rows must have"):
        stalls([])


def test_whatever_was_recorded_is_drawn_one_rate_or_many():
    one = recorded_runs(record(("orca", 20.0), ("stall-free", 20.0)), Simulated)
    bars = [bar.get_height() for bar in one.figure.axes[0].patches if bar.get_height()]
    assert bars == [100, 105, 110, 115] and [each.get_text() for each in one.figure.legends[0].texts] == [
        "recorded", "simulated"]  # fmt: skip
    runs = [(name, rate) for name in ("static", "orca", "alternating", "stall-free") for rate in (24.0, 8.0, 16.0)]
    many = recorded_runs(record(*runs))
    lines = many.figure.axes[1].get_lines()
    assert [line.get_label() for line in lines] == [f"{each}, recorded" for each in sorted({name for name, _ in runs})]
    assert all(list(line.get_xdata()) == [8.0, 16.0, 24.0] for line in lines)
    both = recorded_runs(record(*runs), Simulated, Limits(tpot=0.02)).figure
    hollow = [line for line in both.axes[0].get_lines() if line.get_mfc() == "none" and len(line.get_xdata())]
    assert len(hollow) == 4 and all(list(line.get_xdata()) == [8.0, 16.0, 24.0] for line in hollow)
    dashed = [[line for line in axes.get_lines() if line.get_label() == "limit"] for axes in both.axes]
    assert [[list(line.get_ydata()) for line in lines] for lines in dashed] == [[], [[20, 20]]]
    assert [axes.get_yscale() for axes in both.axes] == ["linear", "linear"]
    much = [row | ({"ttft_p90_ms": 1e5} if row.get("name") == "static" else {}) for row in record(*runs).rows]
    assert recorded_runs(much).figure.axes[0].get_yscale() == "log"
    assert "orca at 20 a second, to the first token 100 ms (simulated 105 ms)" in one.alt
    assert "recorded on H200" in many.alt and "simulated" not in many.alt


def test_the_longest_gap_has_a_panel_where_it_was_recorded():
    class WithGaps(Simulated):
        requests = [SimpleNamespace(longest_gap=gap) for gap in (None, 0.1, 0.4)]

    class WithoutGaps(Simulated):
        requests = [SimpleNamespace(longest_gap=None)]

    rows = [row | {"wait_longest_ms": 333.0} for row in record(("orca", 20.0)).rows if row["sweep"] == "served"]
    shown = recorded_runs(rows, WithGaps)
    assert [bar.get_height() for bar in shown.figure.axes[2].patches if bar.get_height()] == [333, 400]
    assert "longest gap of all 333 ms (simulated 400 ms)" in shown.alt
    with pytest.raises(ValueError, match="gaps=True"):
        recorded_runs(rows, WithoutGaps)


def test_who_was_in_time_is_drawn_as_recorded_and_hollow_as_simulated():
    class OneOfThree(Simulated):
        def attainment(self, limits):
            assert limits == Limits(ttft=0.5, tpot=0.03)
            return 1 / 3

    runs = record(("orca", 20.0), ("orca", 10.0), ("static", 1.0))
    rows = [row | {"attained": 0.9 if row.get("rate") == 10 else 0.25, "attained_of": [0.5, 0.03]} for row in runs.rows]
    shown = recorded_goodput(rows)
    _, orca, static = shown.figure.axes[0].get_lines()
    assert (list(orca.get_xdata()), list(orca.get_ydata())) == ([10, 20], [90, 25]) and list(static.get_ydata()) == [25]
    assert "within 500 ms to the first token and 30 ms a token" in shown.alt and "simulated" not in shown.alt
    both = recorded_goodput(rows, OneOfThree)
    hollow = [line for line in both.figure.axes[0].get_lines() if line.get_mfc() == "none" and len(line.get_xdata())]
    assert [[round(y) for y in line.get_ydata()] for line in hollow] == [[33, 33], [33]]
    assert "orca at 10 a second, 90% (simulated 33%)" in both.alt


def test_a_record_without_runs_is_refused():
    with pytest.raises(ValueError, match="no served runs"):
        recorded_runs(record())
    with pytest.raises(ValueError, match="no served runs with `attained`"):
        recorded_goodput(record(("orca", 20.0)))
