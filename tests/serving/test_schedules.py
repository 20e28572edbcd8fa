"""Any schedule, the same tokens: what the engine says to each of many requests is what transformers says to it alone.

Schedules are drawn: sizes of blocks, steps and pools, policies, when requests arrive and are aborted, prompts that
share their beginnings, several answers to one prompt, guesses of which some are right. The pools are small, and in some
steps all that is free is taken away, so that requests are preempted. Steps are planned one at a time, and ahead.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.policies import POLICIES
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.telemetry.events import Admitted
from tests.serving.conftest import EOS, LONGEST
from tests.support.size import FULL, sized

BASES = [tuple((7 * base + 11 * i * (base + 1)) % 61 + 3 for i in range(30)) for base in range(3)]
PROMPTS = [(*base[:n], *more) for base in BASES for n in (1, 2, 5, 8, 16, 17, 30) for more in ((), (40, 41))]
DRAWN = [dict(temperature=0.9), dict(temperature=1.4, top_k=9, top_p=0.9), dict(temperature=1.0, min_p=0.05)]

HAPPENS = ("preempted", "hit", "shared", "copies", "aborted", "guessed")


@dataclass(frozen=True)
class Asked:
    """One request of a schedule."""

    prompt: tuple[int, ...]
    max_tokens: int
    n: int
    stop: tuple[int, ...]
    arrives: int  #  before this step
    aborted: int | None  #  before this step
    drawn: int | None  #  one of DRAWN; None: greedy
    seed: int

    @property
    def params(self) -> SamplingParams:
        how = {} if self.drawn is None else DRAWN[self.drawn] | dict(seed=self.seed)
        return SamplingParams(max_tokens=self.max_tokens, n=self.n, stop_token_ids=self.stop, **how)


asked = st.builds(
    Asked,
    prompt=st.sampled_from(PROMPTS),
    max_tokens=st.integers(1, LONGEST),
    n=st.sampled_from([1, 1, 2, 3]),
    stop=st.lists(st.integers(3, 66), max_size=3).map(tuple),
    arrives=st.integers(0, 8),
    aborted=st.one_of(st.none(), st.none(), st.integers(1, 20)),
    drawn=st.one_of(st.none(), st.none(), st.integers(0, len(DRAWN) - 1)),
    seed=st.integers(0, 3),
)
sizes = st.fixed_dictionaries(
    dict(
        block_size=st.sampled_from([1, 2, 3, 4, 7, 16]),
        max_sequences=st.sampled_from([1, 2, 3, 4, 5, 6]),
        policy=st.sampled_from(sorted(POLICIES)),
        watermark=st.sampled_from([0.0, 0.01, 0.3]),
        more_tokens=st.integers(0, 30),
        more_blocks=st.integers(0, 9),
        squeezed=st.sets(st.integers(2, 30), max_size=8),
    )
)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_in_any_schedule_each_request_gets_the_tokens_that_it_gets_alone(pairs, family):
    hold_to(pairs[family])


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_and_where_each_step_is_planned_while_the_one_before_runs(pairs, family):
    hold_to(pairs[family], execution=Execution(ahead=True))


def hold_to(pair, **engine):
    seen = Counter()

    @settings(max_examples=sized(short=20, full=150), suppress_health_check=list(HealthCheck))
    @given(st.lists(asked, min_size=3, max_size=8), sizes, st.integers(0, 3), st.randoms())
    def hold(requests, sizes, k, random):
        seen.update(what_happened(pair, requests, sizes | engine, k, random))

    hold()
    if FULL:  # of twenty schedules, it may well be that none preempts, or none shares
        assert all(seen[what] for what in HAPPENS), f"the schedules had not everything in them: {seen}"


def what_happened(pair, requests, sizes, k, random) -> dict[str, int]:
    """Runs a schedule, and holds it to what is expected."""
    if pair.ours.dtype == torch.float32:  # where a draw on an edge may fall to either side
        requests = [Asked(**vars(each) | dict(drawn=None)) for each in requests]
    squeezed = sizes.pop("squeezed")
    engine = made(pair, requests, **sizes)
    responses, guessed = run(engine, pair, requests, squeezed, k, random)
    for each, response in zip(requests, responses, strict=True):
        for answer in response.answers:
            note(f"{each} {answer} {answer.tokens}")
            assert answer.reason in ("stop", "length", "abort")
            whole = expected(pair, each, answer.index)
            if answer.reason == "abort":
                assert each.aborted is not None
                assert pair.agrees(each.prompt, answer.tokens, max_tokens=len(answer.tokens), instead=whole)
            else:
                ends = {EOS, *each.stop}
                assert pair.agrees(each.prompt, answer.tokens, ends=ends, max_tokens=each.max_tokens, instead=whole)
                assert answer.metrics.output_tokens == len(answer.tokens) + (answer.reason == "stop")
    assert engine.pool.stats.used == 0 and not engine.has_unfinished and not engine.metrics.requests
    totals = engine.metrics.totals
    return dict(
        preempted=totals.preemptions, hit=totals.hit_tokens, aborted=totals.aborted, copies=engine.pool.stats.copies,
        shared=sum(isinstance(each, Admitted) and each.shared for each in engine.events), guessed=guessed,
        stored=totals.stored_blocks, returned=totals.returned_blocks,
    )  # fmt: skip


def made(pair, requests, *, block_size, max_sequences, more_tokens, more_blocks, **rest) -> Engine:
    """One whose pool has room for the largest request and a few blocks more."""
    largest = max(len(each.prompt) + each.max_tokens - 1 for each in requests)
    num_blocks = 1 + -(-largest // block_size) + more_blocks
    tokens = max_sequences + more_tokens
    sizes = dict(block_size=block_size, num_blocks=num_blocks, max_sequences=max_sequences, max_tokens_per_step=tokens)
    return Engine(pair.ours, **sizes, **rest)


def run(engine, pair, requests, squeezed, k, random):
    """The schedule, with up to k guesses a step, each request arriving and being aborted when it is to be."""
    responses, guessed = {}, 0
    for step in range(2000):
        for i, each in enumerate(requests):
            if each.arrives == step:
                responses[i] = engine.add(each.prompt, each.params, id=str(i))
            if each.aborted == step:
                engine.abort(str(i))
        if k:
            guessed += guess(engine, pair, requests, k, random)
        if step in squeezed and len(engine.scheduler.running) > 1:
            taken = engine.pool.allocate(engine.pool.free_blocks * engine.pool.block_size)
            engine.step()
            engine.pool.free(taken)
        else:
            engine.step()
        if len(responses) == len(requests) and not engine.has_unfinished:
            return [responses[i] for i in range(len(requests))], guessed
    raise AssertionError("the schedule does not come to an end")


def guess(engine, pair, requests, k, random):
    guessed = 0
    for request in list(engine.scheduler.running):
        asked = requests[int(request.id.partition(".")[0])]
        whole, _ = pair.greedy(asked.prompt)
        right = whole[request.num_generated : request.num_generated + random.randint(0, k)]
        engine.scheduler.propose(request.id, [random.choice((token, token, 5)) for token in right])
        guessed += len(right)
    return guessed


def expected(pair, asked, index):
    """What is drawn for a request alone: nothing to wait for, nothing to share. None where nothing is drawn."""
    if asked.drawn is None:
        return None
    return alone(pair, asked.prompt, asked.drawn, asked.seed + index)


@functools.cache
def alone(pair, prompt, drawn, seed):
    engine = Engine(pair.ours, num_blocks=20, max_sequences=1)
    params = SamplingParams(max_tokens=LONGEST, ignore_eos=True, seed=seed, **DRAWN[drawn])
    return engine.generate([prompt], params)[0].tokens
