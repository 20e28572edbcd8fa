"""mbarrier's phases against a plain count of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.hardware.barrier import Barrier, Race, Ring


@given(count=st.integers(1, 4), arrivals=st.integers(0, 20))
def test_a_phase_ends_after_count_arrivals_and_waits_go_by_its_parity(count, arrivals):
    barrier = Barrier(count)
    assert barrier.wait(1) and not barrier.wait(0)  # the phase before the first counts as ended
    for _ in range(arrivals):
        barrier.arrive()
    ended = arrivals // count
    assert barrier.phase == ended
    assert barrier.missing == count - arrivals % count
    assert barrier.wait((ended - 1) % 2) and not barrier.wait(ended % 2)


@given(st.permutations(["expect 5", "copied 2", "copied 3", "arrive"]))
def test_a_phase_ends_when_all_have_arrived_and_all_bytes_are_there_in_any_order(events):
    barrier = Barrier(2)
    for n, event in enumerate(events):
        assert barrier.phase == 0, events[:n]
        match event.split():
            case ["expect", nbytes]:
                barrier.expect_bytes(int(nbytes))
            case ["copied", nbytes]:
                barrier.copied(int(nbytes))
            case _:
                barrier.arrive()
    assert (barrier.phase, barrier.missing, barrier.nbytes) == (1, 2, 0)


def test_a_warp_two_phases_behind_cannot_tell():
    barrier = Barrier(1)
    barrier.arrive()
    assert barrier.wait(0)
    barrier.arrive()
    assert not barrier.wait(0)  # phase 0 ended long ago, and the warp that did not look waits for phase 2
    barrier.arrive()
    assert barrier.wait(0)


def test_a_barrier_refuses_too_many_arrivals_and_impossible_arguments():
    barrier = Barrier(2, "empty[1]")
    barrier.arrive()
    with pytest.raises(Race, match=r"empty\[1\]: more arrivals in phase 0 than the 2 that it counts"):
        barrier.arrive(2)
    with pytest.raises(ValueError, match="parity must be 0 or 1, got 2"):
        barrier.wait(2)
    with pytest.raises(ValueError, match="count must be at least 1"):
        Barrier(0)
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        Ring(0)
