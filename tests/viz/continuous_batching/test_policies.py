"""Policies side by side: areas are requests × time, and the longest wait is that between two tokens of one request."""

from itertools import accumulate

import pytest

from llmsys.serving import POLICIES
from llmsys.viz.continuous_batching import policies
from llmsys.viz.continuous_batching.play import Asked, play
from llmsys.viz.continuous_batching.policies import BINS, averaged, longest_wait, waits
from llmsys.viz.continuous_batching.timeline import read

REQUESTS = [
    Asked("A", tuple(range(10)), 20), Asked("B", (11, 12), 9), Asked("long", tuple(range(20, 60)), 4, step=3),
    Asked("D", (13,), 12, step=5),
]  # fmt: skip


def timelines():
    return {name: read(play(REQUESTS, policy=name, max_tokens_per_step=60 if name in ("static", "orca") else 8,
                            max_sequences=3)) for name in POLICIES}  # fmt: skip


def seconds(step):
    return 0.01 + 0.001 * step.tokens


def test_the_longest_wait_is_for_the_long_prompt_where_it_comes_whole():
    found = timelines()
    orca = longest_wait(found["orca"], seconds)
    assert orca.seconds == pytest.approx(seconds_of_prompt := 0.01 + 0.001 * 42) and seconds_of_prompt > 0.05
    assert orca.request in ("A", "B")
    assert longest_wait(found["stall-free"], seconds).seconds <= 0.01 + 0.001 * 8 + 1e-9
    assert 0.018 < longest_wait(found["alternating"], seconds).seconds < 0.04


def test_there_is_a_wait_between_any_two_tokens_of_a_request_and_they_add_up():
    steps = timelines()["stall-free"]
    found = waits(steps, seconds)
    assert len(found) == sum(each.output - 1 for each in REQUESTS)
    ends = dict(zip((step.number for step in steps), accumulate(map(seconds, steps)), strict=True))
    first = next(step.number for step in steps if "A" in step.said)
    last = next(step.number for step in reversed(steps) if "A" in step.said)
    of_a = sum(each.seconds for each in found if each.request == "A")
    assert of_a == pytest.approx(ends[last] - ends[first])


def test_nobody_waits_where_nobody_has_two_tokens():
    steps = read(play([Asked("A", (1, 2), 1)], max_tokens_per_step=4, max_sequences=1))
    assert longest_wait(steps, seconds) is None
    assert "the longest wait between two tokens none" in policies({"one": steps}, seconds, places=1).alt


@pytest.mark.parametrize("bins", [1, 7, BINS])
def test_areas_are_requests_times_seconds(bins):
    for steps in timelines().values():
        end = 1.25 * sum(map(seconds, steps))
        decodes, prompts = averaged(steps, seconds, end, bins)
        assert sum(decodes) * end / bins == pytest.approx(
            sum(seconds(step) * len(step.parts) for step in steps if not step.prompt_tokens)
        )
        assert sum(prompts) * end / bins == pytest.approx(
            sum(seconds(step) * len(step.parts) for step in steps if step.prompt_tokens)
        )


def test_a_row_for_each_policy_with_its_steps_and_its_time():
    found = timelines()
    picture = policies(found, seconds, places=3)
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes]
    for name, steps in found.items():
        assert any(title.startswith(f"{name}: {len(steps)} steps, ") for title in titles)
        assert f"{name}: {len(steps)} steps in" in picture.alt
    assert "longest wait: 52 ms" in " ".join(titles) and "longest wait between two tokens 52 ms" in picture.alt


def test_where_there_is_nothing_to_draw_it_says_so():
    for nothing in ({}, {"static": []}):
        with pytest.raises(ValueError, match="timelines must have a policy at least"):
            policies(nothing, seconds, places=3)
