"""The ring for every seed; deadlocks and races that are named."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.hardware.mbarrier import (
    Arrive,
    Copy,
    Deadlock,
    Expect,
    Race,
    Read,
    Wait,
    consumer,
    play,
    producer,
)  # fmt: skip


@given(
    slots=st.integers(1, 4), tiles=st.integers(0, 9), consumers=st.integers(1, 3), seed=st.integers(0, 2**32)
)  # fmt: skip
def test_every_consumer_reads_every_tile_in_any_order_of_events(slots, tiles, consumers, seed):
    trace = play(producer, [consumer] * consumers, slots, tiles, seed)
    assert trace.reads == [list(range(tiles))] * consumers
    assert len(trace.events) == tiles * (3 + 3 * consumers + 1)  # a tile: 3 of each role, and a copy that ends
    for event in trace.events:
        assert sum(event.copying) <= slots
        for full, empty in zip(event.full, event.empty, strict=True):
            assert 0 <= full.phase - empty.phase <= 1  # filled once more than given back, or as often


def test_seeds_draw_different_orders_and_the_same_seed_the_same():
    def order(seed):
        return [(event.who, event.text) for event in play(seed=seed).events]

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(10)}) > 5


def test_an_event_shows_who_waits_and_what_lies_where():
    first = play(slots=2, tiles=1, seed=0).events[0]
    assert first.who == "producer" and first.text == "wait for parity 1 of empty[0]"
    assert first.waiting == {"consumer 0": "wait for parity 0 of full[0]"}
    assert first.tiles == (None, None)
    last = play(slots=2, tiles=3, seed=0).events[-1]
    assert last.tiles == (2, 1) and not last.waiting
    assert [each.phase for each in last.full] == [2, 1]


# Roles that are wrong


def refuse(error, message, *, seeds=40, **roles):
    """Some seed raises this error with this message, and errors carry the trace. Returns how many seeds fail."""
    seen = []
    for seed in range(seeds):
        try:
            play(seed=seed, **roles)
        except (Race, Deadlock) as raised:
            seen.append(raised)
    assert any(isinstance(each, error) and re.search(message, str(each)) for each in seen), [str(e) for e in seen]
    assert all(each.trace.slots == roles.get("slots", 2) for each in seen)
    return len(seen)


def test_a_producer_that_waits_with_the_consumers_parity_never_starts():
    def late(ring, tiles):
        for i in range(tiles):
            slot = i % ring.slots
            yield Wait(ring.empty[slot], i // ring.slots % 2)
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)

    message = (
        r"producer waits for parity 0 of empty\[0\], which is in phase 0, of the same parity: to end, it needs 1 of 1 "
        r"arrivals, and no tile has been in the slot that a consumer could give back; "
        r"consumer 0 waits for parity 0 of full\[0\], .* 1 of 1 arrivals, and producer waits"
    )
    assert refuse(Deadlock, message, producer=late) == 40


def test_a_slot_that_is_not_given_back_ends_in_a_deadlock():
    def keeps(ring, tiles):
        for action in consumer(ring, tiles):
            if not isinstance(action, Arrive):
                yield action

    message = r"producer waits for parity 0 of empty\[0\].*needs 1 of 2 arrivals, and consumer 0 .*, consumer 1 waits"
    assert refuse(Deadlock, message, consumers=[consumer, keeps]) == 40


def test_bytes_that_are_not_copied_or_not_announced_end_in_a_deadlock():
    def greedy(ring, tiles):
        for action in producer(ring, tiles):
            yield Expect(action.barrier, 2 * action.nbytes) if isinstance(action, Expect) else action

    def silent(ring, tiles):
        return (action for action in producer(ring, tiles) if not isinstance(action, Expect))

    assert refuse(Deadlock, r"full\[0\].* it needs 16384 bytes, of which no copy is under way", producer=greedy) == 40
    assert refuse(Deadlock, r"full\[0\].* 1 of 1 arrivals and somebody to announce 16384 bytes", producer=silent) == 40


def test_a_parity_that_never_changes_is_right_for_one_round_only():
    def stuck(ring, tiles):
        for i in range(tiles):
            yield Wait(ring.full[i % ring.slots], 0)
            yield Read(i % ring.slots)
            yield Arrive(ring.empty[i % ring.slots])

    assert play(consumers=[stuck], slots=2, tiles=2).reads == [[0, 1]]
    refuse(Race, r"consumer 0 reads slot 0, wants tile 2, and finds tile 0", consumers=[stuck])


def test_a_producer_that_does_not_wait_for_an_empty_slot_is_a_race():
    def hasty(ring, tiles):
        return (action for action in producer(ring, tiles) if not isinstance(action, Wait))

    refuse(Race, r"full\[0\]: more arrivals|and consumer 0 has not read tile 0", producer=hasty)
    refuse(Race, r"copies tile 2 into slot 0, and consumer 0 has not read tile 0, which is there", producer=hasty)


def test_a_consumer_that_does_not_wait_or_gives_back_before_reading_is_a_race():
    def blind(ring, tiles):
        return (action for action in consumer(ring, tiles) if not isinstance(action, Wait))

    def early(ring, tiles):
        for i in range(tiles):
            slot = i % ring.slots
            yield Wait(ring.full[slot], i // ring.slots % 2)
            yield Arrive(ring.empty[slot])
            yield Read(slot)

    refuse(Race, "finds nothing", consumers=[blind])
    refuse(Race, "which is still being copied", consumers=[blind])
    failed = refuse(Race, "consumer 0 has not read tile", consumers=[early])
    assert failed < 40  # some orders hide it: why more than one is played


def test_a_consumer_that_stops_early_and_a_role_that_is_no_generator_are_refused():
    def short(ring, tiles):
        return consumer(ring, tiles - 1)

    refuse(Race, "consumer 0 has ended after 7 of 8 tiles", consumers=[short])
    with pytest.raises(ValueError, match="producer must be a generator function"):
        play(lambda ring, tiles: None)
    with pytest.raises(ValueError, match="producer must yield Wait, Arrive, Expect, Copy or Read, and yielded 3"):
        play(lambda ring, tiles: (i for i in [3]))
    with pytest.raises(ValueError, match="there is no slot 7; slots are 0 to 1"):
        play(lambda ring, tiles: (Copy(0, i) for i in [7]))
