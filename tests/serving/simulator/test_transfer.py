"""Transfers: the closed form is what sending layer after layer takes, and a link passes one thing after the other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.serving.simulator import Transfer
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.simulator.transfer import Link, send_whole


def one_by_one(free, began, ended, layers, *, made, found):
    """When the last layer is through, where each is sent behind the one before and when it was computed."""
    end, layer, share = max(free, began) + found, (ended - began) // layers, made // layers
    for n in range(1, layers + 1):
        end = max(end, began + n * layer) + share
    return end


@given(
    st.integers(0, 10**4), st.integers(0, 10**4), st.integers(1, 60), st.integers(0, 300), st.integers(0, 300),
    st.integers(0, 500),
)  # fmt: skip
def test_layer_by_layer_is_through_when_sending_them_one_by_one_is(free, began, layers, layer, share, found):
    link, ended, made = Link(), began + layers * layer, layers * share
    link.free = free
    through = link.send_layers(began, ended, layers, made=made, found=found)
    assert through == link.free == one_by_one(free, began, ended, layers, made=made, found=found)
    assert link.busy == made + found


@given(st.integers(1, 10**6), st.integers(1, 100), st.integers(1, 10**6))
def test_behind_slower_layers_all_is_hidden_but_the_last_one(step, layers, made):
    """And behind faster ones all but what the link takes for longer than the layers after the first."""
    lag = Link().send_layers(0, step, layers, made=made) - step
    longest = max(made / layers, made - step * (layers - 1) / layers)
    assert lag == pytest.approx(longest, abs=1) and lag <= made
    assert lag >= Link().send_layers(0, step, layers + 1, made=made) - step - 1, "more layers hide no less"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=20))
def test_a_link_is_never_given_more_than_it_can_carry(given_to_it):
    link = Link()
    given_to_it.sort()
    ends = [link.carry(ready, ticks) for ready, ticks in given_to_it]
    for n, (_, ticks) in enumerate(given_to_it):
        assert ends[n] - ticks >= max([given_to_it[n][0], *ends[:n]])
    assert link.busy == sum(ticks for _, ticks in given_to_it) <= link.free


def test_a_whole_cache_waits_for_both_ends():
    sender, receiver, other = Link(), Link(), Link()
    assert send_whole(sender, receiver, 10, 5) == 15
    assert send_whole(sender, other, 12, 5) == 20, "the sender is at it until 15"
    assert send_whole(Link(), receiver, 13, 5) == 20, "the receiver is, too"
    assert send_whole(sender, receiver, 100, 5) == 105


def test_what_a_cache_takes_is_its_bytes_over_the_bandwidth():
    transfer = Transfer(bytes_per_token=131_072, bandwidth=50e9, latency=2e-5)
    assert transfer.ticks(1000) == round(1000 * 131_072 / 50e9 * TICKS) and transfer.latency_ticks == 2e-5 * TICKS
    assert Transfer().ticks(10**6) == Transfer().latency_ticks == 0


def test_what_cannot_be_is_refused():
    for bad in (dict(bytes_per_token=-1), dict(latency=math.inf), dict(latency=-1e-9), dict(bandwidth=0),
                dict(bandwidth=math.nan), dict(layers=0), dict(layers=1.5)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            Transfer(**bad)
