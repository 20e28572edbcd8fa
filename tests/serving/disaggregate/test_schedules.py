"""In any schedule, the tokens of one engine: what several say to each of many requests, whatever the order of turns and
arrivals, block sizes, chunks, hits, preemptions, aborts and deaths, is what one engine says to it alone.
"""

import random
from collections import Counter

import pytest
import torch

from llmsys.serving import POLICIES, Engine, Execution, SamplingParams
from tests.serving.disaggregate.fuzzed import assert_empty, assert_whole, fuzzed, happened
from tests.support.size import SEED, sized

BASES = [[(7 * base + 11 * i * (base + 1)) % 61 + 3 for i in range(40)] for base in range(3)]
DRAWN = [{}, {}, dict(temperature=0.9), dict(temperature=1.3, top_k=9, top_p=0.9)]
SEEDS = range(sized(short=6, full=150))


@pytest.fixture(scope="module")
def alone(qwen3):
    """What one engine says to a request that it has alone."""
    torch.set_num_threads(1)
    engine, known = Engine(qwen3.ours, num_blocks=120, block_size=4), {}

    def answer(prompt, params):
        if (prompt, params) not in known:
            (response,) = engine.generate([list(prompt)], params)
            known[prompt, params] = [
                (each.tokens, each.reason, each.stopped_by, logprobs_of(each)) for each in response.answers
            ]
        return known[prompt, params]

    return answer


def logprobs_of(answer):
    if answer.logprobs is None:
        return None
    return [([token for token, _ in each.top], round(each.logprob, 6)) for each in answer.logprobs]


def a_long_one(draw: random.Random):
    """Of which a small pool cannot hold many to their ends."""
    prompt = draw.choice(BASES)[: draw.randint(9, 17)]
    return tuple(prompt), SamplingParams(max_tokens=20, ignore_eos=True, **draw.choice([{}, DRAWN[2] | dict(seed=3)]))


def a_request(draw: random.Random):
    prompt = draw.choice(BASES)[: draw.choice([1, 3, 4, 8, 11, 16, 17, 29, 40])] + draw.choice([[], [5], [40, 41]])
    how = draw.choice(DRAWN)
    return tuple(prompt), SamplingParams(
        max_tokens=draw.choice([1, 2, 6, 20, 20]), n=draw.choice([1, 1, 1, 3]), ignore_eos=draw.random() < 0.7,
        stop_token_ids=tuple(draw.sample(range(3, 67), draw.choice([0, 0, 0, 3]))),
        logprobs=draw.choice([None, None, None, 2]), **how | (dict(seed=draw.randrange(9)) if how else {}),
    )  # fmt: skip


def settings(draw: random.Random, tight: int):
    size = draw.choice([1, 2, 3, 4, 7, 16])
    sequences = draw.choice([1, 2, 3, 4, 6])
    slots = 64 + tight * draw.randint(0, 20)
    return dict(
        block_size=size, num_blocks=1 + -(-slots // size), max_sequences=sequences,
        max_tokens_per_step=sequences + draw.randint(0, 30), policy=draw.choice(sorted(POLICIES)),
        watermark=draw.choice([0.0, 0.0, 0.2]), window=draw.choice([None, None, 1, 30]), max_model_len=64,
        execution=Execution(ahead=draw.random() < 0.5),
    )  # fmt: skip


CROWDED = dict(max_sequences=6, max_tokens_per_step=20, watermark=0.0, window=None)


def run(model, alone, seed, *, deaths: int = 0) -> Counter:
    """One schedule, to its end. Every other one has long requests in a pool that is too small for them."""
    crowded = isinstance(seed, int) and seed % 2 == 1
    draw = random.Random(f"{seed} {deaths}")
    engine = fuzzed(
        model, draw, prefill=draw.choice([1, 1, 2]), decode=draw.choice([1, 2, 3 if deaths else 1]),
        of_prefill=settings(draw, 5), of_decode=settings(draw, 0 if crowded else 1) | (CROWDED if crowded else {}),
    )  # fmt: skip
    engine.links.after.append(lambda: assert_whole(engine))
    left = [a_long_one(draw) if crowded else a_request(draw) for _ in range(draw.randint(5, 8))]
    under_way, aborted, killed, turns = [], set(), 0, 0
    while left or engine.has_unfinished:
        turns += 1
        assert turns < 20_000, "it does not come to an end"
        if left and draw.random() < 0.5:
            prompt, params = left.pop()
            under_way.append((engine.add(list(prompt), params), prompt, params))
        if under_way and draw.random() < 0.01:
            response = draw.choice(under_way)[0]
            if engine.abort(response.id):
                aborted.add(response.id)
        if killed < deaths and draw.random() < 0.05 and len(engine.links.instances) > 1:
            engine.links.kill(draw.choice(sorted(engine.links.instances)))
            killed += 1
        engine.step()
    for response, prompt, params in under_way:
        for answer, expected in zip(response.answers, alone(prompt, params), strict=True):
            got = (answer.tokens, answer.reason, answer.stopped_by, logprobs_of(answer))
            if response.id in aborted and answer.reason == "abort":
                n = len(answer.tokens)
                assert answer.tokens == expected[0][:n]
            else:
                assert got == expected, (prompt, params)
    assert_empty(engine)
    return happened(engine) + Counter(killed=killed)


def test_every_request_gets_the_tokens_that_it_gets_from_one_engine(qwen3, alone):
    total = Counter()
    for seed in SEEDS:
        total += run(qwen3.ours, alone, seed)
    assert all(total[what] for what in ("preempted", "hit", "aborted")), total


def test_todays_schedules(qwen3, alone):
    for i in range(sized(short=2, full=30)):
        run(qwen3.ours, alone, f"{SEED} {i}")


def test_engines_that_die_lose_no_request_and_no_block_of_others(qwen3, alone):
    total = Counter()
    for seed in SEEDS:
        total += run(qwen3.ours, alone, seed, deaths=3)
    assert total["killed"] > len(SEEDS) / 2, total
