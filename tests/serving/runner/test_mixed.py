"""Steps of all kinds as graphs, on a CPU: prompts in chunks, decodes and guesses together say what they say eagerly."""

import random

import pytest

from llmsys.cache import PagedCache
from llmsys.serving.execution import Execution
from llmsys.serving.plan import PLACEHOLDER, StepPlan, Work
from llmsys.serving.runner import Runner
from llmsys.serving.runner.graphs import LARGEST_TOKENS, token_buckets
from llmsys.serving.sampling.sampling_params import SamplingParams

KINDS = [SamplingParams(), SamplingParams(temperature=1.0, seed=3), SamplingParams(temperature=1.2, top_p=0.8, seed=4)]
KINDS.append(SamplingParams(logprobs=1))


def runner(pair, *, graphs: bool, **more) -> Runner:
    cache = PagedCache(num_blocks=80, block_size=4, spec=pair.ours.cache_spec())
    sizes = dict(max_sequences=6, max_model_len=60, max_tokens=24)
    return Runner(pair.ours, cache, execution=Execution(graphs=graphs, **more), **sizes)


class Texts:
    """Some texts of which each plan computes a part: a chunk of the prompt, or the newest token and guesses at more."""

    def __init__(self, gen: random.Random):
        self.tokens = [[gen.randrange(3, 67) for _ in range(gen.randint(1, 15))] for _ in range(5)]
        self.computed = [0] * 5
        self.hidden = [False] * 5  # the newest token comes of the step before, and need not be told

    def plan(self, gen: random.Random, *, hide: bool) -> StepPlan:
        works = []
        for i in gen.sample(range(5), gen.randint(1, 5)):
            known, computed = self.tokens[i], self.computed[i]
            n = gen.randint(1, len(known) - computed)
            new, logits = known[computed : computed + n], int(computed + n == len(known))
            if logits and n == 1 and gen.random() < 0.3:
                new, logits = [*new, *(gen.randrange(3, 67) for _ in range(2))], 3
            elif logits and n == 1 and self.hidden[i] and hide:
                new = [PLACEHOLDER]
            blocks = tuple(range(1 + 15 * i, 16 + 15 * i))
            works.append(Work(str(i), tuple(new), computed, blocks, logits, KINDS[i % 4]))
        return StepPlan(0, tuple(works))

    def take(self, plan: StepPlan, result) -> None:
        said = {each.request: each.tokens for each in result.outputs}
        self.hidden = [False] * 5
        for work in plan.work:
            i, tokens = int(work.request), said.get(work.request, ())
            self.tokens[i] += tokens
            self.computed[i] = work.end if not tokens else len(self.tokens[i]) - 1
            self.hidden[i] = work.logits == 1


@pytest.mark.parametrize("seed", range(6))
def test_steps_of_all_kinds_say_what_they_say_one_kernel_at_a_time(qwen3, seed):
    ours, plain = runner(qwen3, graphs=True), runner(qwen3, graphs=False)
    here, there = (Texts(random.Random(seed)) for _ in range(2))
    one, other = random.Random(seed), random.Random(seed)
    for _ in range(12):
        first, second = here.plan(one, hide=True), there.plan(other, hide=False)
        launched = ours.launch(first)
        decode = all(len(work.tokens) == work.logits == 1 for work in first.work)
        small = first.num_tokens <= 24 and sum(work.logits for work in first.work) <= 8
        assert launched.bucket in ((1, 2, 4, 8) if decode else (16, 24) if small else (None,))
        mine, theirs = launched.result(), plain.run(second)
        assert [each[:2] for each in mine.outputs] == [each[:2] for each in theirs.outputs]
        here.take(first, mine), there.take(second, theirs)
    assert here.tokens == there.tokens and ours.graphs.captured_tokens


def test_what_fills_up_writes_nothing(qwen3):
    ours = runner(qwen3, graphs=True)
    greedy = SamplingParams()
    ours.run(StepPlan(0, (Work("a", (5, 9, 30, 12), 0, (1, 2), 0, greedy), Work("b", (4, 6), 0, (7,), 0, greedy))))
    cache, (a, b) = ours.cache, [ours.rows._row[name] for name in "ab"]
    before = [pages.clone().nan_to_num_(7) for pages in cache._keys.values()]
    newest = ours.rows.newest.clone()
    ours.run(StepPlan(1, (Work("b", (8, 9), 2, (7,), 1, greedy), Work("a", (3,), 4, (1, 2), 0, greedy))))
    for pages, old in zip(cache._keys.values(), before, strict=True):
        changed = (pages.clone().nan_to_num_(7) != old).flatten(2).any(2).nonzero().tolist()
        assert changed == [[2, 0], [7, 2], [7, 3]]
    same = [row for row in range(1, len(newest)) if row != b]
    assert a != b and ours.rows.newest[same].tolist() == newest[same].tolist() and ours.rows.newest[b] != 0


def test_they_may_be_left_out(qwen3):
    ours = runner(qwen3, graphs=True, mixed_graphs=False)
    assert ours.launch(StepPlan(0, (Work("a", (5, 9), 0, (1,), 1, KINDS[0]),))).bucket is None
    assert ours.launch(StepPlan(1, (Work("a", (5,), 2, (1,), 1, KINDS[0]),))).bucket == 1


def test_the_numbers_of_tokens_reach_as_far_as_a_step():
    assert token_buckets(2048) == (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
    assert token_buckets(100) == (16, 32, 64, 100) and token_buckets(7) == (7,)
    assert token_buckets(10**6)[-1] == LARGEST_TOKENS
