"""The timeline's stepper shows what the log says: cells, lanes, sums and words."""

import random
import statistics
import time
from functools import cache
from itertools import product
from xml.etree import ElementTree

import pytest

from llmsys.serving import POLICIES, EventLog, Scheduler
from llmsys.viz.continuous_batching import stepper
from llmsys.viz.continuous_batching.play import Asked, play
from llmsys.viz.continuous_batching.stepper import BLOCK_SIZE, BUDGETS, PLACES, POOLS, REQUESTS, describe
from llmsys.viz.continuous_batching.timeline_frame import draw

SVG = "{http://www.w3.org/2000/svg}"
SETTINGS = [*product(POLICIES, BUDGETS, POOLS)]


@cache  # several tests look at the same frames
def frames_of(policy="stall-free", budget=16, blocks=12):
    shown = stepper()
    shown.set(policy=policy, budget=budget, blocks=blocks)
    return shown.frames


def rects(frame, height, *classes):
    found = ElementTree.fromstring(draw(frame).markup()).iter(f"{SVG}rect")
    return [each for each in found if each.get("height") == height and each.get("class") in classes]


@pytest.mark.parametrize(("policy", "budget", "blocks"), SETTINGS)
def test_there_is_a_cell_for_everybody_who_computed_and_a_dashed_one_for_whoever_could_not(policy, budget, blocks):
    frame = frames_of(policy, budget, blocks)[-1]
    parts = [part for step in frame.past for part in step.parts]
    assert len(rects(frame, "19", "blue", "orange")) == sum(part.decode for part in parts)
    assert len(rects(frame, "19", "blue-soft", "orange-soft")) == sum(not part.decode for part in parts)
    idle = sum(frame.state(row.name, step) == "idle" for row in frame.rows for step in frame.past)
    assert len(rects(frame, "19", "line-muted dashed")) == idle
    ended = sum(len(step.ended) for step in frame.past)
    inside = sum(step.running for step in frame.past)  # after a step, without those who ended in it
    assert len(parts) + idle == inside + ended
    if policy == "alternating":
        assert idle


def test_whoever_waits_has_a_line_until_it_comes_in():
    frames = frames_of()
    before = frames[6]
    assert [before.state(name, before.now) for name in "DEFG"] == ["waits", "waits", "waits", ""]
    waits = sum(before.state(row.name, step) == "waits" for row in before.rows for step in before.past)
    assert len(rects(before, "2", "muted")) == waits + 1  # and the key's


def test_the_preempted_request_loses_its_tokens_and_finds_them(words):
    frames = frames_of()
    (at,) = [frame for frame in frames if frame.now.preempted]
    assert at.now.number == 10 and at.now.preempted == {"E": 12}
    assert "E is preempted, and loses 12 computed tokens." in words(draw(at).markup())
    after = frames[11]
    assert after.now.admitted == {"E": 12, "F": 0}
    assert "E comes in, with 12 tokens found. F comes in." in words(draw(after).markup())
    assert (after.lost, after.found) == (12, 8 + 8 + 12)


@pytest.mark.parametrize(("policy", "budget", "blocks"), SETTINGS)
def test_texts_can_be_read(policy, budget, blocks, assert_legible):
    frames = frames_of(policy, budget, blocks)
    for frame in [frames[-1], *random.Random(4).sample(frames, 2)]:
        assert_legible(draw(frame).markup())


@pytest.mark.parametrize(("policy", "budget", "blocks"), SETTINGS)
def test_what_happens_fits_into_its_line_in_every_frame(policy, budget, blocks, assert_legible):
    for frame in frames_of(policy, budget, blocks):
        svg = draw(frame)
        texts = ElementTree.fromstring(svg.markup()).findall(f"{SVG}text")[-2:]
        only = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {svg.width} {svg.height}">'
        assert_legible(only + "".join(ElementTree.tostring(text, encoding="unicode") for text in texts) + "</svg>")


@pytest.mark.parametrize(("policy", "budget", "blocks"), SETTINGS)
def test_something_is_said_of_every_step(policy, budget, blocks):
    for frame in frames_of(policy, budget, blocks):
        assert frame.tail and frame.head.startswith(f"Step {frame.now.number}: {frame.now.tokens} token")


def test_bars_are_to_scale():
    frame = frames_of()[-1]
    root = ElementTree.fromstring(draw(frame).markup())
    bars = [each for each in root.iter(f"{SVG}rect") if each.get("rx") == "0" and each.get("class") != "muted"]
    heights = sum(float(each.get("height")) for each in bars if not each.get("class").startswith("line-"))
    tokens = 46 * sum(step.tokens for step in frame.past) / 16
    blocks = 46 * sum(step.blocks_used for step in frame.past) / 12
    assert heights == pytest.approx(tokens + blocks, rel=0.01)


def test_the_caption_says_what_the_picture_shows():
    frame = frames_of()[7]
    said = describe(frame)
    assert "Computed: C a token, D 15 of a prompt." in said
    assert f"So far {frame.computed} tokens were computed, 8 found and 0 lost." in said


def test_it_shows_the_readers_own_scheduler_and_beside_it_the_librarys_policies():
    made = []

    class Own(Scheduler):
        def __init__(self, *args, **kwargs):
            made.append(kwargs["policy"])
            super().__init__(*args, **kwargs)

    shown = stepper(Own)
    assert made == ["stall-free"] and shown.values["policy"] == "yours"
    assert list(shown.controls[0].options) == ["yours", "stall-free", "static", "orca", "alternating"]
    assert [frame.head for frame in shown.frames] == [frame.head for frame in frames_of()]
    shown.set(policy="orca")
    assert made == ["stall-free"] and [f.head for f in shown.frames] == [f.head for f in frames_of("orca")]


def test_controls_keep_the_place():
    shown = stepper()
    shown.go(9)
    shown.set(policy="orca")
    assert shown.index == 9 and len(shown.widget.children[1].children) == 3


def test_the_log_of_an_engine_that_has_run_can_be_shown():
    log = play(REQUESTS, max_tokens_per_step=16, max_sequences=PLACES, num_blocks=13, block_size=BLOCK_SIZE)
    shown = stepper(events=log, budget=16, places=PLACES)
    assert [frame.head for frame in shown.frames] == [frame.head for frame in frames_of()]
    assert [row.prompt for row in shown.frame.rows] == [len(each.prompt) for each in REQUESTS]


def test_names_of_an_engines_requests_leave_the_cells_alone(texts):
    requests = [Asked(f"request-{n}", tuple(range(n, 1200 + n)), 2) for n in (9, 10)]
    log = play(requests, max_tokens_per_step=1300, max_sequences=2)
    shown = stepper(events=log, budget=1300, places=2)
    found = [text for text in texts(shown.svg()) if " · " in text]
    assert found == ["request-9 · 1200", "request-10 · 1200"]  # without the unit


def test_a_log_without_steps_or_without_its_limits_is_refused():
    with pytest.raises(ValueError, match="events must have 1 to 60 steps of at most 16 requests, got 0 steps of 0"):
        stepper(events=EventLog(), budget=16, places=4)
    with pytest.raises(ValueError, match="events need budget= and places="):
        stepper(events=EventLog())


def test_a_frame_costs_milliseconds(record_property):
    times = []
    for frame in frames_of("static", 16, 12) * 3:
        start = time.perf_counter()
        draw(frame).markup()
        times.append(time.perf_counter() - start)
    record_property("median_ms", 1e3 * statistics.median(times))  # the bound is for a busy machine
    assert statistics.median(times) < 0.04
