"""Lesson 06's ring: every frame is an event of the machine, and shows its barriers as they are."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from llmsys.hardware.mbarrier import Arrive, Barrier, Deadlock, Race, Read, Wait, consumer, play
from llmsys.viz.flash_hopper import ring
from llmsys.viz.flash_hopper.ring import steps

SVG = "{http://www.w3.org/2000/svg}"


def always_parity_zero(ring, tiles):
    for i in range(tiles):
        slot = i % ring.slots
        yield Wait(ring.full[slot], 0)
        yield Read(slot)
        yield Arrive(ring.empty[slot])


def waits_for_what_never_ends(ring, tiles):
    yield Wait(ring.empty[0], 0)


def without_waiting(ring, tiles):
    yield Read(0)


@pytest.mark.parametrize("slots, consumers, seed", list(itertools.product((1, 2, 3), (1, 2), (0, 1))))
def test_the_frames_are_the_events_and_count_what_happened(slots, consumers, seed):
    trace = play(consumers=[consumer] * consumers, slots=slots, tiles=5, seed=seed)
    frames = steps(trace)
    assert [step.event for step in frames[1:]] == trace.events
    assert list(frames[-1].reads.values()) == [tuple(reads) for reads in trace.reads]
    assert frames[-1].started == 5
    before = frames[0]
    for step in frames[1:]:
        barriers = [(was, now) for was, now in zip((*before.event.full, *before.event.empty),
                                                   (*step.event.full, *step.event.empty), strict=True)]  # fmt: skip
        assert step.changed == {now.name for was, now in barriers if was != now}
        assert step.ended == "".join(
            f"phase {was.phase} of {was.name}" for was, now in barriers if was.phase < now.phase
        )
        before = step


def test_in_the_first_frame_every_barrier_is_as_it_begins():
    event = ring().frame.event
    fresh = Barrier(1)
    assert all((each.phase, each.missing, each.nbytes) == (fresh.phase, fresh.missing, 0) for each in event.full)
    assert event.tiles == (None, None)
    two = steps(play(consumers=[consumer] * 2, slots=3, tiles=1))[0].event
    assert [each.missing for each in two.empty] == [2, 2, 2]


def strip(markup, name):
    """The parities shown beside a barrier's name, and which is bold: the phase under way."""
    found = [(text.get("class", ""), "".join(text.itertext()), float(text.get("y")))
             for text in ElementTree.fromstring(markup).iter(f"{SVG}text")]  # fmt: skip
    y = next(y for _, text, y in found if text == name)
    cells = [(classes, text) for classes, text, at in found if at == y and text in "01" and "middle" in classes]
    return [int(text) for _, text in cells], next(n for n, (classes, _) in enumerate(cells) if "bold" in classes)


@pytest.mark.parametrize("slots, consumers", [(1, 1), (2, 1), (3, 2)])
def test_parities_alternate_and_the_one_under_way_is_the_barriers(slots, consumers):
    stepper = ring()
    stepper.set(slots=slots, consumers=consumers)
    for index in range(0, len(stepper.frames), 3):
        event = stepper.frames[index].event
        for barrier in (*event.full, *event.empty):
            parities, now = strip(stepper.svg(index), barrier.name)
            assert parities[now] == barrier.phase % 2 and now == min(barrier.phase + 1, 3)
            assert all(one != other for one, other in itertools.pairwise(parities))


@pytest.mark.parametrize("slots, consumers", [(1, 1), (2, 2), (3, 1)])
def test_every_frame_is_legible_and_says_who_waits(slots, consumers, assert_legible):
    stepper = ring()
    stepper.set(slots=slots, consumers=consumers, seed=1)
    for index, step in enumerate(stepper.frames):
        assert_legible(stepper.svg(index))
        for who, what in step.event.waiting.items():
            assert f"{who} for {what.removeprefix('wait for ')}" in stepper.html(index)


def test_a_deadlock_ends_with_its_reason_and_shows_who_waits(assert_legible, texts):
    with pytest.raises(Deadlock) as caught:
        play(consumers=(always_parity_zero, consumer), slots=2, tiles=6)
    stepper = ring(caught.value)
    last = len(stepper.frames) - 1
    assert stepper.frames[last].error == str(caught.value) and last == len(caught.value.trace.events) + 1
    assert "producer waits for parity" in stepper.static_html().lower()
    assert_legible(stepper.svg(last))
    assert sum("waits for parity" in text for text in texts(stepper.svg(last))) == 3
    assert len(ring(caught.value.trace).frames) == last  # without the error: what led to it


def test_an_error_in_the_first_action_is_shown_too(assert_legible):
    with pytest.raises(Deadlock) as caught:
        play(producer=waits_for_what_never_ends)
    stepper = ring(caught.value)
    assert len(stepper.frames) == 2 and re.search("Producer waits for parity 0 of empty", stepper.html(1))
    with pytest.raises(Race) as caught:
        play(consumers=(without_waiting,))
    assert "reads slot 0" in ring(caught.value).static_html()
    assert_legible(ring(caught.value).svg(0))


def test_anything_but_a_trace_or_its_error_is_refused():
    with pytest.raises(ValueError, match="trace must be what mbarrier.play returned"):
        ring([1, 2])
