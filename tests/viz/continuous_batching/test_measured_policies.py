"""Policies as they were measured: bars are tokens a second, and marks the waits of a record."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.continuous_batching import measured_policies

WAITS = ("ttft_median_ms", "ttft_p99_ms", "wait_median_ms", "wait_p99_ms", "wait_longest_ms")


def record(**waits):
    rows = [
        {"sweep": "policies", "name": name, "model": "Qwen3-0.6B", "requests": 256, "rate": 32.0, "tokens_per_s": speed}
        | {key: (n + 1) * 10.0 * scale for n, key in enumerate(WAITS)}
        | waits
        for name, speed, scale in (("static", 4000.0, 2), ("stall-free", 6000.0, 1))
    ]
    return Record("serving", "NVIDIA H200", {}, "2026-01-01", [{"sweep": "copy", "name": "copy", "gbps": 1.0}, *rows])


def marks(axes):
    return {(float(line.get_xdata()[0]), round(float(line.get_ydata()[0])))
            for line in axes.get_lines() if len(line.get_xdata()) == 1}  # fmt: skip


def test_bars_are_tokens_a_second_and_marks_the_waits_in_the_records_order():
    speed, first, next_ = measured_policies(record()).figure.axes
    assert [label.get_text() for label in speed.get_yticklabels()] == ["static", "stall-free"]
    assert [(patch.get_width(), round(patch.get_y() + 0.3)) for patch in speed.patches] == [(4000, 1), (6000, 0)]
    assert marks(first) == {(20, 1), (40, 1), (10, 0), (20, 0)}
    assert marks(next_) == {(60, 1), (80, 1), (100, 1), (30, 0), (40, 0), (50, 0)}


@pytest.mark.parametrize(("low", "high"), [(12.0, 15.0), (3.0, 80.0), (2.0, 9000.0)])
def test_there_is_a_number_on_the_axis_however_narrow_or_wide_it_is(low, high):
    first = measured_policies(record(ttft_median_ms=low, ttft_p99_ms=high)).figure.axes[1]
    shown = [label.get_text() for label in first.get_xticklabels()]
    assert len(shown) >= 2 and all("e" not in text and "10^" not in text for text in shown)


def test_it_says_in_words_what_it_shows(words):
    picture = measured_policies(record())
    assert picture.alt.startswith(
        "256 requests, 32 a second, to Qwen3-0.6B on H200, by each policy: static 4,000 tokens"
    )
    assert "stall-free 6,000 tokens a second, first token after 10 ms (99% within 20 ms), next ones after 30 ms" in (
        picture.alt
    )
    assert "longest" in words(picture)


def test_a_record_without_policies_is_refused():
    with pytest.raises(ValueError, match="no rows of policies"):
        measured_policies([])
