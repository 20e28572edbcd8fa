"""A long run with everything that can go wrong: every request ends, the faulty ones fail alone, and nothing is left."""

import gc
import math
import random
import sys
from collections import deque

import pytest

from llmsys.cache.host_tier import always
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.host_cache import HostCache
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.telemetry.events import EventLog
from tests.serving.test_schedules import PROMPTS
from tests.support.size import SEED, sized


class Faults:
    """Poisons what enters the model of some sequences, whose keys and values are then NaN, and breaks some whole steps.

    What a faulty sequence wrote stays in its blocks, and the next owner must not see it.
    """

    def __init__(self, model, random):
        self.model, self.random = model, random
        self.ids: set[str] = set()  # of requests that had one
        self.plan = None

    def __enter__(self):
        self.hook = self.model.embedding.register_forward_hook(self.poison)
        return self

    def __exit__(self, *_):
        self.hook.remove()

    def poison(self, module, args, x):
        if self.random.random() < 0.003:
            self.ids |= {work.request for work in self.plan.work}
            raise RuntimeError("a step that breaks")
        start = 0
        for work in self.plan.work:
            end = start + len(work.tokens)
            if self.random.random() < 0.005:
                self.ids.add(work.request)
                x[:, start:end] = math.nan
            start = end
        return x


@pytest.mark.parametrize(("ahead", "host_cache"), [(False, None), (True, None), (True, HostCache(20_000, always))])
def test_every_request_ends_the_faulty_fail_alone_and_nothing_is_left(llama, ahead, host_cache):
    requests = sized(short=80, full=1000)  # twice
    gen = random.Random(SEED)
    engine = Engine(
        llama.ours, num_blocks=40, block_size=4, max_tokens_per_step=24, max_sequences=8, events=EventLog(keep=100),
        execution=Execution(ahead=ahead), host_cache=host_cache,
    )  # fmt: skip
    engine.metrics.steps = deque(maxlen=50)
    for prompt in PROMPTS:
        llama.greedy(prompt)  # made once, before memory is looked at
    launch = engine.runner.launch
    with Faults(llama.ours, gen) as faults:

        def launched(plan):
            faults.plan = plan
            return launch(plan)

        engine.runner.launch = launched
        used = []
        for half in range(2):
            soak(engine, llama, faults, gen, requests, half)
            gc.collect()
            used.append(sum(sys.getsizeof(each) for each in gc.get_objects()))
    totals = engine.metrics.totals
    assert totals.requests == totals.finished + totals.failed + totals.aborted >= 2 * requests
    assert min(totals.finished, totals.failed, totals.aborted, totals.preemptions, totals.hit_tokens) > 0, totals
    if host_cache:
        stats = engine.pool.host.stats
        assert totals.returned_blocks and totals.stored_blocks and stats.dropped and stats.held <= stats.blocks
    assert used[1] - used[0] < 30_000, f"{used[1] - used[0]:,} bytes more after as many requests again"


def soak(engine, pair, faults, gen, requests, half):
    under_way, begun = {}, 0
    faults.ids.clear()
    for _ in range(100 * requests):
        while begun < requests and gen.random() < 0.4:
            id, prompt, n = f"{half}.{begun}", gen.choice(PROMPTS), gen.choice((1, 1, 2))
            params = SamplingParams(max_tokens=gen.randint(1, 24), n=n, ignore_eos=True)
            under_way[id] = engine.add(prompt, params, id=id), params
            begun += 1
        if gen.random() < 0.05 and under_way:
            engine.abort(gen.choice(list(under_way)))
        try:
            engine.step()
        except RuntimeError as error:
            assert str(error) == "a step that breaks"
        for id in [id for id, (response, _) in under_way.items() if response.finished]:
            check(pair, faults, id, *under_way.pop(id))
        if begun == requests and not under_way:
            break
    assert not under_way and not engine.has_unfinished and not engine.metrics.requests
    assert engine.pool.stats.used == 0 and not engine._answers.under_way and not engine._answers.responses


def check(pair, faults, id, response, params):
    """Right, unless it was aborted or had a fault; then right as far as it came."""
    for answer in response.answers:
        mine = id + (f".{answer.index}" if answer.index else "")
        assert answer.reason in ("length", "abort") or (answer.reason == "error" and mine in faults.ids), answer
        n = params.max_tokens if answer.reason == "length" else len(answer.tokens)
        assert pair.agrees(response.prompt_tokens, answer.tokens, max_tokens=n), (answer, answer.tokens)
