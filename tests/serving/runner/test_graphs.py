"""Decode steps by bucket, on a CPU where nothing is captured: the same function over the same buffers."""

import math
import random
import threading
import time

import pytest
import torch

from llmsys.cache import Copy, PagedCache
from llmsys.serving.execution import Execution
from llmsys.serving.plan import PLACEHOLDER, StepPlan, Work
from llmsys.serving.runner import Runner
from llmsys.serving.runner.graphs import LARGEST, Graphs, buckets
from llmsys.serving.sampling.sampling_params import SamplingParams

GREEDY = SamplingParams()
KINDS = [GREEDY, SamplingParams(temperature=1.0, seed=3), SamplingParams(temperature=1.2, top_k=9, seed=4)]
KINDS += [SamplingParams(logprobs=2), SamplingParams(temperature=0.8, seed=5, logprobs=0)]


def runner(pair, *, graphs=True, num_blocks=80, block_size=4, **more) -> Runner:
    cache = PagedCache(num_blocks=num_blocks, block_size=block_size, spec=pair.ours.cache_spec())
    return Runner(pair.ours, cache, execution=Execution(graphs=graphs), **more)


class Sequences:
    """Some sequences of a few blocks each, and the plans that continue any of them by a token."""

    def __init__(self, n: int, gen: random.Random):
        self.tokens = {f"s{i}": [gen.randrange(3, 67) for _ in range(gen.randint(1, 9))] for i in range(n)}
        self.blocks = {name: tuple(range(1 + 5 * i, 6 + 5 * i)) for i, name in enumerate(self.tokens)}
        self.kinds = {name: gen.choice(KINDS) for name in self.tokens}

    def prefill(self) -> StepPlan:
        works = (Work(name, tuple(known), 0, self.blocks[name], 1, self.kinds[name])
                 for name, known in self.tokens.items())  # fmt: skip
        return StepPlan(0, tuple(works))

    def decode(self, names, *, hidden: bool, copies=()) -> StepPlan:
        works = []
        for name in names:
            known = self.tokens[name]
            newest = PLACEHOLDER if hidden else known[-1]
            works.append(Work(name, (newest,), len(known) - 1, self.blocks[name], 1, self.kinds[name]))
        return StepPlan(0, tuple(works), copies=tuple(copies))

    def take(self, result) -> None:
        for output in result.outputs:
            assert output.error is None
            self.tokens[output.request] += output.tokens


@pytest.mark.parametrize("seed", range(4))
def test_any_decodes_in_any_order_say_what_they_say_one_kernel_at_a_time(qwen3, seed):
    gen = random.Random(seed)
    n = gen.choice([1, 3, 9, 15])
    ours, plain = (runner(qwen3, graphs=graphs) for graphs in (True, False))
    here, there = (Sequences(n, random.Random(seed)) for _ in range(2))
    here.take(ours.run(here.prefill()))
    there.take(plain.run(there.prefill()))
    before: set[str] = set(here.tokens)
    for step in range(8):
        names = gen.sample(sorted(here.tokens), gen.randint(1, n))
        hidden = set(names) <= before and step % 3 > 0
        a, b = ours.launch(here.decode(names, hidden=hidden)), plain.launch(there.decode(names, hidden=False))
        first, second = a.result(), b.result()
        assert [(each.request, each.tokens) for each in first.outputs] == [
            (each.request, each.tokens) for each in second.outputs
        ]
        for one, other in zip(first.outputs, second.outputs, strict=True):
            for mine, theirs in zip(one.logprobs or (), other.logprobs or (), strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-9)
        assert a.bucket in buckets(256) and a.bucket >= len(names) and b.bucket is None
        here.take(first), there.take(second)
        before = set(names) if step % 3 == 0 else before
        before = set(here.tokens)
    assert here.tokens == there.tokens and len(ours.graphs.captured) >= 1


@pytest.mark.parametrize("n", [1, 3])
def test_a_step_that_goes_on_where_the_last_one_was_sends_new_blocks_alone(qwen3, monkeypatch, n):
    ours, plain = runner(qwen3), runner(qwen3, graphs=False)
    here, there = (Sequences(n, random.Random(n)) for _ in range(2))
    for some in (here, there):
        some.kinds = {name: KINDS[i % 2] for i, name in enumerate(some.tokens)}
        some.blocks = {name: tuple(range(1 + 9 * i, 10 + 9 * i)) for i, name in enumerate(some.tokens)}
    here.take(ours.run(here.prefill())), there.take(plain.run(there.prefill()))
    sent, send = [], ours._sender.send
    monkeypatch.setattr(ours._sender, "send", lambda *args: sent.append(args) or send(*args))
    told: dict[str, tuple] = {}
    names, held = list(here.tokens), 0

    def decode(some, hidden, names):
        works = []
        for work in some.decode(names, hidden=hidden).work:
            blocks = work.blocks[: 1 + work.computed // 4]
            blocks = told[work.request] = blocks if told.get(work.request) != blocks else told[work.request]
            works.append(work._replace(blocks=blocks))
        return StepPlan(0, tuple(works))

    for step in range(20):
        plan = decode(here, step > 0, names)
        new, held = sum(len(work.blocks) for work in plan.work) - held, sum(len(work.blocks) for work in plan.work)
        sent.clear()
        here.take(ours.run(plan)), there.take(plain.run(decode(there, False, names)))
        assert here.tokens == there.tokens
        assert not step or len(sent) == (new > 0)
    # Another order, one fewer, a step that failed: all of these are sent whole, and right.
    for some in ([*reversed(names)], names[:1], names[:1]):
        here.take(ours.run(decode(here, True, some))), there.take(plain.run(decode(there, False, some)))
        assert here.tokens == there.tokens
    monkeypatch.setattr(qwen3.ours.head, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        ours.launch(decode(here, True, names[:1]))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="place-holder"):
        ours.launch(decode(here, True, names[:1]))
    here.take(ours.run(decode(here, False, names))), there.take(plain.run(decode(there, False, names)))
    assert here.tokens == there.tokens


def test_a_plan_with_no_room_for_its_token_is_refused_also_where_it_goes_on(llama):
    ours = runner(llama)
    ours.run(StepPlan(0, (Work("a", (5, 9, 30), 0, (1, 2), 1, GREEDY),)))
    blocks = (1, 2)
    for i in range(5):
        ours.run(StepPlan(0, (Work("a", (PLACEHOLDER,), 3 + i, blocks, 1, GREEDY),)))
    with pytest.raises(ValueError, match="do not fit into 2 blocks"):
        ours.run(StepPlan(0, (Work("a", (PLACEHOLDER,), 8, blocks, 1, GREEDY),)))


def bits(pages):
    return pages.view(torch.int64)  # what nobody has written yet may be NaN


def test_what_fills_up_a_bucket_writes_nothing(qwen3):
    gen = random.Random(2)
    ours = runner(qwen3)
    some = Sequences(5, gen)
    some.take(ours.run(some.prefill()))
    pages = {layer: bits(keys).clone() for layer, keys in ours.cache._keys.items()}
    places = [(some.blocks[name][(len(known) - 1) // 4], (len(known) - 1) % 4) for name, known in some.tokens.items()]
    newest = ours.rows.newest.clone()
    launched = ours.launch(some.decode(list(some.tokens), hidden=False))
    assert launched.bucket == 8 and launched.result()
    for layer, before in pages.items():
        changed = (bits(ours.cache._keys[layer]) != before).flatten(2).any(2).nonzero().tolist()
        assert sorted(map(tuple, changed)) == sorted(places)
    mine = [ours.rows._row[name] for name in some.tokens]
    others = [row for row in range(1, len(newest)) if row not in mine]
    assert torch.equal(ours.rows.newest[others], newest[others]) and (ours.rows.on_device[0] == -1).all()


def test_blocks_that_became_others_are_read_where_they_are_now(llama):
    """Copied on write, and preempted and back elsewhere: between two decodes of the same graph."""
    ours = runner(llama)
    prompt = (5, 9, 30, 12, 44, 8, 60)
    expected = llama.greedy(prompt)[0]
    ours.run(StepPlan(0, (Work("a", prompt, 0, (1, 2), 1, GREEDY),)))

    def decode(i, blocks, copies=()):
        plan = StepPlan(0, (Work("a", (expected[i],), len(prompt) + i, blocks, 1, GREEDY),), copies=copies)
        launched = ours.launch(plan)
        assert launched.bucket == 1
        return launched.result().outputs[0].tokens[0]

    assert decode(0, (1, 2)) == expected[1]
    assert decode(1, (1, 2, 3)) == expected[2]
    assert decode(2, (1, 2, 7), [Copy(3, 7)]) == expected[3]
    ours.run(StepPlan(0, (Work("a", (*prompt, *expected[:3]), 0, (11, 12, 13), 1, GREEDY),)))  # computed once more
    ours.run(StepPlan(0, (Work("x", (40,) * 12, 0, (1, 2, 7), 1, GREEDY),)))  # its old blocks are another's
    assert decode(3, (11, 12, 13)) == expected[4]


def test_logits_that_are_not_finite_fail_their_request_alone_and_what_follows_is_whole(llama, monkeypatch):
    ours = runner(llama)
    some = Sequences(3, random.Random(0))
    some.kinds = dict.fromkeys(some.tokens, GREEDY)
    some.take(ours.run(some.prefill()))
    good = [each.tokens for each in ours.run(some.decode("s0 s1 s2".split(), hidden=False)).outputs]
    head = llama.ours.head.forward
    monkeypatch.setattr(llama.ours.head, "forward", lambda x: head(x).index_fill(1, torch.tensor([1]), math.nan))
    a, b, c = ours.run(some.decode("s0 s1 s2".split(), hidden=False)).outputs
    assert [a.tokens, c.tokens] == [good[0], good[2]] and b.tokens == () and "not finite" in b.error
    monkeypatch.undo()
    # A plan that was made ahead has work for the one that failed: it is computed, and nobody wants it.
    ahead = StepPlan(0, tuple(Work(name, (PLACEHOLDER,), len(some.tokens[name]), some.blocks[name], 1, GREEDY)
                              for name in some.tokens))  # fmt: skip
    assert all(each.error is None for each in ours.run(ahead).outputs)


def test_a_step_that_raised_leaves_the_next_ones_right(llama, monkeypatch):
    ours = runner(llama)
    prompt = (5, 9, 30, 12, 44, 8, 60)
    expected = llama.greedy(prompt)[0]
    ours.run(StepPlan(0, (Work("a", prompt, 0, (1, 2), 1, GREEDY),)))
    step = StepPlan(0, (Work("a", (PLACEHOLDER,), 7, (1, 2), 1, GREEDY),))
    for block, error in ((2, "broken"), (80, "from 0 to 79")):
        monkeypatch.setattr(llama.ours.head, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises((RuntimeError, ValueError), match=error):
            ours.launch(StepPlan(0, (Work("a", (expected[0],), 7, (1, block), 1, GREEDY),)))
        monkeypatch.undo()
    with pytest.raises(ValueError, match="place-holder"):  # what it drew is not known
        ours.launch(step)
    assert ours.run(StepPlan(0, (Work("a", expected[:1], 7, (1, 2), 1, GREEDY),))).outputs[0].tokens == (expected[1],)


def test_more_and_longer_sequences_than_there_was_room_for_are_taken(llama):
    ours = runner(llama, max_sequences=2, max_model_len=8)
    some = Sequences(12, random.Random(1))
    some.kinds = dict.fromkeys(some.tokens, GREEDY)
    prompts = {name: tuple(tokens) for name, tokens in some.tokens.items()}
    launched = []
    some.take(ours.run(some.prefill()))
    for names in (["s0", "s1"], list(some.tokens), ["s0", "s1"], ["s1"]):
        launched.append(ours.launch(some.decode(names, hidden=False)))
        some.take(launched[-1].result())
    for name, prompt in prompts.items():
        assert llama.agrees(prompt, some.tokens[name][len(prompt) :], max_tokens=len(some.tokens[name]) - len(prompt))
    assert [each.bucket for each in launched] == [2, None, 2, 1]


def test_other_steps_than_decodes_have_no_graph(llama):
    ours = runner(llama)
    chunk = Work("a", (5, 9, 30), 0, (1, 2), 0, GREEDY)
    assert ours.launch(StepPlan(0, (chunk,))).bucket is None
    guesses = Work("a", (12, 3), 3, (1, 2), 2, GREEDY)
    assert ours.launch(StepPlan(0, (guesses,))).bucket is None
    mixed = (Work("a", (12,), 3, (1, 2), 1, GREEDY), Work("b", (4,), 0, (5,), 0, GREEDY))
    assert ours.launch(StepPlan(0, mixed)).bucket is None
    # As many rows of logits as works, though not one each.
    mixed = (Work("a", (12, 5), 3, (1, 2), 2, GREEDY), Work("b", (4,), 0, (5,), 0, GREEDY))
    assert [each.request for each in ours.run(StepPlan(0, mixed)).outputs] == ["a"]


def test_little_of_a_bucket_is_filled_up():
    found = buckets(256)
    assert found[0] == 1 and found[-1] == 256 and len(found) <= 17 and buckets(3) == (1, 2, 4)
    assert buckets(10**6)[-1] == LARGEST
    filled = [min(each for each in found if each >= n) - n for n in range(1, 257)]
    assert sum(filled) < 0.09 * sum(range(1, 257)) and all(more <= n for n, more in enumerate(filled, 1))


def test_engines_in_several_threads_capture_one_after_the_other(llama, monkeypatch):
    inside, most = [], []

    def captures(self, graph, device):
        inside.append(graph)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(graph)

    monkeypatch.setattr(Graphs, "_capture", captures)
    device = torch.device("cuda", 0)
    threads = [threading.Thread(target=runner(llama).graphs._captured, args=(i, device)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
