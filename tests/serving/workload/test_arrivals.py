"""Workloads: when requests come, and which prompts begin alike."""

import math
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.serving import draw_lengths
from llmsys.serving.workload import BLOCK, Arrival, at_rate, prompt_tokens, read_mooncake, shared_share, synthetic
from tests.support.traces import trace_path


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_pauses_have_the_mean_and_the_spread_that_were_asked_for(cv):
    workload = synthetic("azure-code", 20_000, rate=5.0, seed=1, cv=cv)
    pauses = [b.at - a.at for a, b in zip(workload, workload[1:], strict=False)]
    assert workload[0].at == 0 and min(pauses) >= 0
    # The mean of n pauses has a standard error of cv/√n of itself; four times that.
    assert mean(pauses) == pytest.approx(1 / 5, rel=4 * cv / math.sqrt(20_000) + 1e-9)
    assert pstdev(pauses) / mean(pauses) == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_poisson_arrivals_are_exponential():
    workload = synthetic("azure-code", 20_000, rate=2.0, seed=2)
    pauses = sorted(b.at - a.at for a, b in zip(workload, workload[1:], strict=False))
    distance = max(abs((n + 0.5) / len(pauses) - (1 - math.exp(-2 * t))) for n, t in enumerate(pauses))
    assert distance < 1.63 / math.sqrt(len(pauses)), "Kolmogorov-Smirnov, at 1%"


def test_the_rate_changes_pauses_alone_and_a_larger_count_begins_with_the_same():
    slow, fast = (synthetic("azure-conversation", 50, rate=rate, seed=3, cv=2.0) for rate in (1.5, 6.0))
    assert [each[1:] for each in slow] == [each[1:] for each in fast]
    assert [each.at for each in slow] == pytest.approx([4 * each.at for each in fast])
    assert slow[:20] == synthetic("azure-conversation", 20, rate=1.5, seed=3, cv=2.0)
    assert [tuple(each) for each in draw_lengths("azure-conversation", 50, seed=3)] == [each[1:3] for each in slow]
    assert slow != synthetic("azure-conversation", 50, rate=1.5, seed=4, cv=2.0)


def test_on_every_machine_a_seed_draws_this():
    first = synthetic("azure-code", 3, rate=1.0, seed=0)
    assert [each[1:3] for each in first] == [tuple(each) for each in draw_lengths("azure-code", 3, seed=0)]
    assert [round(each.at, 6) for each in first] == [0.0, 1.120067, 3.403957]


def test_at_rate_keeps_all_but_the_pauses():
    workload = [Arrival(3.0, 1, 1), Arrival(5.0, 2, 1), Arrival(5.0, 3, 1), Arrival(9.0, 4, 1)]
    faster = at_rate(workload, 2.0)
    assert [each.at for each in faster] == pytest.approx([0, 0.5, 0.5, 1.5])
    assert [each[1:] for each in faster] == [each[1:] for each in workload]
    for none in ([], workload[:1], workload[1:3]):
        with pytest.raises(ValueError, match="two times"):
            at_rate(none, 2.0)


@st.composite
def prompts(draw):
    n = draw(st.integers(1, 3 * BLOCK))
    keys = draw(st.lists(st.integers(0, 200_000), min_size=-(-n // BLOCK), max_size=-(-n // BLOCK)))
    return Arrival(0.0, n, 1, tuple(keys))


@given(prompts(), prompts(), st.sampled_from([None, 2, 97, 32_000]))
def test_prompts_are_equal_as_far_as_their_blocks_are(a, b, vocab):
    ours, theirs = prompt_tokens(a, 0, vocab=vocab), prompt_tokens(b, 1, vocab=vocab)
    assert (len(ours), len(theirs)) == (a.prompt, b.prompt)
    assert vocab is None or max(ours + theirs) < vocab
    equal = next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), min(a.prompt, b.prompt))
    keys = next((i for i, (x, y) in enumerate(zip(a.blocks, b.blocks, strict=False)) if x != y), None)
    if keys is None:
        assert equal >= min(len(a.blocks), len(b.blocks)) * BLOCK - BLOCK
    else:
        # As many tokens more as the keys have equal digits: of 200,000 in base 2 that may be 18.
        assert keys * BLOCK <= equal <= keys * BLOCK + {None: 0, 2: 18, 97: 2, 32_000: 1}[vocab] or equal == min(
            a.prompt, b.prompt
        )


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([None, 32_000]))
def test_prompts_without_blocks_share_nothing(n, m, vocab):
    one, other = (prompt_tokens(Arrival(0.0, k, 1), i, vocab=vocab) for i, k in enumerate((n, m)))
    assert (len(one), len(other)) == (n, m) and one[0] != other[0]
    traced = prompt_tokens(Arrival(0.0, n, 1, tuple(range(-(-n // BLOCK)))), 2)
    assert traced[0] != one[0]


def test_the_cache_without_a_limit_hits_what_somebody_had_before():
    assert shared_share([]) == 0
    workload = [Arrival(0, 1000, 1, (1, 2)), Arrival(0, 1000, 1, (1, 3)), Arrival(0, 600, 1, (4, 3)),
                Arrival(0, 1500, 1, (1, 3, 5))]  # fmt: skip
    assert shared_share(workload) == (512 + 1024) / 4100


@pytest.mark.parametrize("name, share", [("mooncake-conversation", 0.374), ("mooncake-synthetic", 0.651)])
def test_mooncakes_traces_share_as_much_as_was_counted(name, share):
    assert round(shared_share(read_mooncake(trace_path(name))), 3) == share


def test_what_cannot_be_is_refused():
    for bad, words in ((dict(rate=0.0), "rate must be above 0"), (dict(rate=math.inf), "rate must be above 0"),
                       (dict(rate=1.0, cv=-1.0), "cv must be a number from 0 on"),
                       (dict(rate=1.0, cv=math.nan), "cv must be a number from 0 on")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            synthetic("azure-code", 3, seed=0, **bad)
    with pytest.raises(ValueError, match="blocks must be one for each 512 tokens of a prompt of 513: 2, got 1"):
        prompt_tokens(Arrival(0.0, 513, 1, (7,)), 0)
    with pytest.raises(ValueError, match="vocab must be at least 2"):
        prompt_tokens(Arrival(0.0, 5, 1), 0, vocab=1)
