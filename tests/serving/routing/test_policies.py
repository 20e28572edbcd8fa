"""Routes: each chooses as its name says, ties go to the first, and a choice that is none is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.serving import Request
from llmsys.serving.routing import ROUTES, Engines, PrefixAware, Random, RoundRobin, as_route, chosen, least_full


def engines(held, hits=None, *, queued=None, room=None, names=None, kind="prefill", block_size=16):
    n = len(held)
    return Engines(
        kind, names or [f"prefill {i}" for i in range(n)], queued or [0] * n, held, room or [10_000] * n, block_size,
        find=None if hits is None else lambda: hits,
    )  # fmt: skip


def request(tokens):
    return Request("a", range(tokens))


@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_dynamos_example_prefers_some_of_both(tokens):
    """A prompt of 10 blocks, of which three workers have 2, 5 and 8, while 10, 5 and 9 blocks are theirs already: costs
    of 8 + 10, 5 + 5 and 2 + 9. https://docs.nvidia.com/dynamo/components/router/routing-concepts"""
    columns = [each * tokens for each in (10, 5, 9)], [each * tokens for each in (2, 5, 8)]
    three, ten = engines(*columns, block_size=tokens), request(10 * tokens)
    assert PrefixAware()(ten, three) == 1
    assert PrefixAware(weight=0)(ten, three) == 1, "the fewest blocks"
    assert PrefixAware(weight=1.5)(ten, three) == 2, "12 + 10, 7.5 + 5, 3 + 9"


@given(st.integers(1, 400), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 500)), min_size=1, max_size=9),
       st.sampled_from([0, 0.5, 1, 3]))  # fmt: skip
def test_the_cost_is_the_lowest_and_the_first_of_equal_ones(tokens, pairs, weight):
    hits, held = [min(hit, tokens - 1) for hit, _ in pairs], [other for _, other in pairs]
    i = PrefixAware(weight)(request(tokens), engines(held, hits))
    costs = [weight * (tokens - hit) + other for hit, other in zip(hits, held, strict=True)]
    assert all(costs[i] < each for each in costs[:i]) and all(costs[i] <= each for each in costs[i:])


def test_without_hits_prefix_aware_is_fewest_tokens():
    for held in ([5, 3, 3], [0, 0], [7, 8, 2]):
        assert PrefixAware()(request(9), engines(held)) == as_route("fewest-tokens")(request(9), engines(held))


def test_least_full_counts_by_room():
    assert least_full(request(3), engines([100, 150], room=[1000, 2000])) == 1
    assert as_route("fewest-tokens")(request(3), engines([100, 150], room=[1000, 2000])) == 0
    assert least_full(request(3), engines([100, 200], room=[1000, 2000])) == 0, "equal ones: the first"


def test_round_robin_takes_turns_by_name_whoever_dies_and_comes_back():
    route, names = RoundRobin(), ["a", "b", "c"]
    three, without = engines([0] * 3, names=names), engines([0] * 2, names=["a", "c"])
    took = [names[route(request(1), three)] for _ in range(4)]
    took += [("a", "c")[route(request(1), without)] for _ in range(3)]
    took += [names[route(request(1), three)] for _ in range(4)]
    assert took == list("abca" + "cac" + "bacb")
    other = replace(three, kind="decode")
    assert RoundRobin()(request(1), other) == 0
    assert route(request(1), other) == 0, "each kind by itself"


def test_round_robin_is_fair():
    route, five = RoundRobin(), engines([0] * 5)
    assert [route(request(1), five) for _ in range(15)] == [*range(5)] * 3


def test_random_is_the_same_with_one_seed_and_reaches_everybody():
    five = engines([9, 0, 0, 0, 0])
    one, other, third = ([route(request(1), five) for _ in range(200)] for route in (Random(), Random(), Random(1)))
    assert one == other != third and all(20 < one.count(i) < 65 for i in range(5))


def test_names_make_routes_of_their_own():
    assert {"random", "round-robin", "fewest-tokens", "least-full", "prefix-aware"} <= set(ROUTES)
    assert as_route("round-robin") is not as_route("round-robin")
    assert isinstance(as_route(RoundRobin), RoundRobin) and as_route(least_full) is least_full
    for wrong in ("nearest", 3, None, int):
        with pytest.raises(ValueError, match="route must be one of random, round-robin"):
            as_route(wrong)
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="weight must be a finite number from 0 on"):
            PrefixAware(wrong)


def test_a_choice_that_is_none_is_refused_and_one_engine_is_no_choice():
    two = engines([0, 0])
    for wrong in (2, -1, "prefill 0", True, None, 0.0):
        with pytest.raises(ValueError, match="route must choose one of 2 engines"):
            chosen(lambda request, engines, wrong=wrong: wrong, request(1), two)
    assert chosen(lambda request, engines: 1, request(1), two) == 1
    assert chosen(lambda request, engines: 1 / 0, request(1), engines([5])) == 0
