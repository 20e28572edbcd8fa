"""One sequence, a padded batch and a ragged step are one model code: the same logits and tokens, and nothing waits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import get_stage
from llmsys.cache import Chunk, ContiguousCache, Layout, NoCache, batch_of, padded_batch_of
from llmsys.models import Llama, LlamaConfig, generate
from tests.support.poison import poison_new_memory
from tests.support.size import sized
from tests.support.waiting import nothing_waits

CAPACITY = 24
GROUPED = LlamaConfig(
    name="grouped", vocab_size=61, hidden_size=24, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=20,
    context_length=64,
)  # fmt: skip
CONFIGS = {
    "grouped": GROUPED,
    "one key head": replace(GROUPED, heads=3, kv_heads=1, layers=1),
    "as many": replace(GROUPED, heads=4, kv_heads=4, head_size=6, tied_embeddings=False),
    "normed": replace(GROUPED, qk_norm=True, layers=3),
    "stretched": replace(GROUPED, rope_divisors=(1.0, 1.5, 3.0, 8.0)),
}


def model_of(config: LlamaConfig) -> Llama:
    torch.manual_seed(3)
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


MODELS = {name: model_of(config) for name, config in CONFIGS.items()}


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    poison_new_memory(monkeypatch)


@st.composite
def schedules(draw):
    """Sequences of tokens, their rows, and steps: whether padded, and which sequences in which order compute how many
    tokens and want the logits of how many. In one step some begin, some go on with their prompt, and some decode."""
    sequences = draw(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=CAPACITY), min_size=1, max_size=4))
    rows = draw(st.permutations(range(5)))[: len(sequences)]
    left, steps = {i: len(each) for i, each in enumerate(sequences)}, []
    while left:
        some = draw(st.permutations(sorted(left)))[: draw(st.integers(1, len(left)))]
        step = [(i, min(left[i], draw(st.sampled_from([1, 1, 2, 5, 13, 24])))) for i in some]
        steps.append((draw(st.booleans()), [(i, T, draw(st.integers(0, T))) for i, T in step]))
        for i, T in step:
            left[i] -= T
        left = {i: n for i, n in left.items() if n}
    return sequences, rows, steps


@given(name=st.sampled_from(sorted(MODELS)), schedule=schedules(), stage=st.sampled_from(["sdpa", "sdpa", "tiled"]))
@settings(max_examples=sized(short=40, full=300))
def test_any_schedule_gives_the_logits_of_each_sequence_by_itself(name, schedule, stage):
    model, (sequences, rows, steps) = MODELS[name], schedule
    expected = [model(torch.tensor([tokens]))[0] for tokens in sequences]
    cache = ContiguousCache(get_stage(stage), capacity=CAPACITY, sequences=5, spec=model.cache_spec())
    computed = [0] * len(sequences)
    for padded, step in steps:
        make = padded_batch_of if padded else batch_of
        batch = make(
            [Chunk(sequences[i][computed[i] : computed[i] + T], computed[i], [rows[i]], logits=wanted)
             for i, T, wanted in step],
            block_size=cache.block_size, vocab_size=61,
        )  # fmt: skip
        logits = model(batch.tokens, cache, batch)
        should = []
        for i, T, wanted in step:
            computed[i] += T
            should.append(expected[i][computed[i] - wanted : computed[i]])
        torch.testing.assert_close(logits, torch.cat(should)[None], atol=1e-4, rtol=1e-4)


@given(
    name=st.sampled_from(sorted(MODELS)),
    sequences=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=17), min_size=1, max_size=5),
    padded=st.booleans(),
)
@settings(max_examples=20)
def test_without_a_cache_too(name, sequences, padded):
    model = MODELS[name]
    make = padded_batch_of if padded else batch_of
    batch = make([Chunk(tokens, logits=len(tokens)) for tokens in sequences], block_size=None)
    expected = torch.cat([model(torch.tensor([tokens])) for tokens in sequences], dim=1)
    torch.testing.assert_close(model(batch.tokens, NoCache(), batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_it_can_be_trained_on(padded):
    """Whole sequences of their own lengths, without a cache: the gradient is that of each by itself, added up."""
    sequences = [[1, 2, 3], [4], [5, 6, 7, 8]]
    ragged, plain = (model_of(GROUPED).requires_grad_(True) for _ in range(2))
    make = padded_batch_of if padded else batch_of
    batch = make([Chunk(tokens, logits=len(tokens)) for tokens in sequences], block_size=None)
    ragged(batch.tokens, None, batch).logsumexp(-1).sum().backward()
    sum(plain(torch.tensor([tokens])).logsumexp(-1).sum() for tokens in sequences).backward()
    for one, other in zip(ragged.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_parts_of_a_model_hand_a_ragged_step_on():
    whole = MODELS["normed"]
    first, last = (Llama(whole.config, layers=layers) for layers in (range(2), range(2, 3)))
    for part in (first, last):
        part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    batch = batch_of([Chunk([1, 2, 3], 0, [1]), Chunk([4, 5], 0, [0])], block_size=9)
    caches = [ContiguousCache(capacity=9, sequences=2) for _ in range(3)]
    x = first(batch.tokens, caches[0], batch)
    assert x.shape == (1, 5, 24), "all tokens go on to the next part"
    logits = last(x, caches[1], batch)
    assert logits.shape == (1, 2, 61) and torch.equal(logits, whole(batch.tokens, caches[2], batch))


def test_positions_are_what_the_caller_says():
    """What depends on distance alone does not change when all of a sequence stands further on."""
    model, tokens = MODELS["grouped"], [1, 2, 3, 4]
    expected = model(torch.tensor([tokens]))[:, -1:]
    batch = batch_of([Chunk(tokens, 0, [0], positions=[50, 51, 52, 53])], block_size=9)
    got = model(batch.tokens, ContiguousCache(capacity=9, sequences=1), batch)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    batch = batch_of([Chunk(tokens, 0, [0], positions=[0, 1, 2, 53])], block_size=9)
    assert not torch.allclose(model(batch.tokens, ContiguousCache(capacity=9, sequences=1), batch), expected, atol=1e-2)


def test_other_tokens_than_the_batchs_are_refused():
    batch = batch_of([Chunk([1, 2, 3], 0, [0])], block_size=9)
    with pytest.raises(ValueError, match=r"tokens must be the batch's, of shape \(1, 3\), got \(1, 2\)"):
        MODELS["grouped"](batch.tokens[:, 1:], ContiguousCache(capacity=9, sequences=1), batch)


@pytest.mark.parametrize("wrong", [[0, 61], [-1, 5]])
def test_on_a_cpu_a_model_still_says_which_tokens_it_does_not_know(wrong):
    with pytest.raises(ValueError, match=f"tokens must be from 0 to 60, got {wrong[0]} to {wrong[1]}"):
        MODELS["grouped"](torch.tensor([wrong]))


def greedily(model: Llama, prompts: list[list[int]], new: int, *, padded: bool, chunk: int) -> list[list[int]]:
    """Greedy tokens of each prompt: prompts in pieces, each begun a step after the one before it, beside decodes."""
    cache = ContiguousCache(capacity=max(map(len, prompts)) + new, sequences=len(prompts), spec=model.cache_spec())
    known, computed, number = [list(prompt) for prompt in prompts], [0] * len(prompts), 0
    make = padded_batch_of if padded else batch_of
    while any(len(tokens) < len(prompt) + new for tokens, prompt in zip(known, prompts, strict=True)):
        number += 1
        some = [i for i in range(min(number, len(prompts))) if len(known[i]) < len(prompts[i]) + new]
        chunks = []
        for i in some:
            tokens = known[i][computed[i] : computed[i] + chunk]
            ends = computed[i] + len(tokens) == len(known[i])
            chunks.append(Chunk(tokens, computed[i], [i], logits=int(ends)))
            computed[i] += len(tokens)
        step = make(chunks, block_size=cache.block_size)
        said = model(step.tokens, cache, step)[0].argmax(-1).tolist()
        for i, each in zip(some, chunks, strict=True):
            if each.logits:
                known[i].append(said.pop(0))
        assert not said, "the logits of nobody"
    return [tokens[len(prompt) :] for tokens, prompt in zip(known, prompts, strict=True)]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_greedy_tokens_are_those_of_each_prompt_by_itself(name):
    model, prompts = MODELS[name], [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8], [4, 6]]
    alone = [generate(model, prompt, max_new_tokens=10).tokens for prompt in prompts]
    for padded in (False, True):
        assert greedily(model, prompts, 10, padded=padded, chunk=4) == alone


def test_greedy_tokens_of_the_real_model_are_those_of_each_prompt_by_itself(smollm2):
    prompts = [smollm2.tokenizer.encode(text) for text in ("The capital of France is", "def f(x):")]
    alone = [generate(smollm2, prompt, max_new_tokens=5).tokens for prompt in prompts]
    for padded in (False, True):
        assert greedily(smollm2, prompts, 5, padded=padded, chunk=4) == alone


class TestNothingWaits:
    CHUNKS = [Chunk([1, 2, 3], 0, [2]), Chunk([4], 0, [0]), Chunk([5], 0, [1], logits=0)]

    @pytest.mark.parametrize("padded", [False, True])
    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("name", sorted(MODELS))
    def test_in_a_step_nothing_asks_for_a_number(self, name, cached, padded):
        """With a mode that forbids it, and on a device where there are no numbers."""
        make = padded_batch_of if padded else batch_of
        meta = Llama(CONFIGS[name]).requires_grad_(False).to("meta")
        for model in (MODELS[name], meta):
            backend = ContiguousCache(capacity=9, sequences=3) if cached else NoCache()
            step = make(self.CHUNKS, block_size=backend.block_size, device=model.device)
            model(step.tokens, backend, step)  # the first time, constants are sent to the device
            with nothing_waits():
                assert model(step.tokens, backend, step).shape == (1, 2, 61)

    @pytest.mark.parametrize("cached", [False, True])
    def test_nor_where_each_row_goes_on_with_its_own(self, cached):
        meta = Llama(GROUPED).requires_grad_(False).to("meta")
        for model in (MODELS["grouped"], meta):
            backend = ContiguousCache(capacity=9) if cached else NoCache()
            with nothing_waits():
                for T in (3, 1, 2):
                    model(torch.ones(2, T, dtype=torch.int64, device=model.device), backend)

    def test_what_would_wait_is_noticed(self):
        x = torch.arange(3.0)
        waiting = [
            lambda: x.sum().item(),
            lambda: bool(x.any()),
            lambda: x[x > 1],
            lambda: x.index_put_((x > 1,), x[0]),
            lambda: x.nonzero(),
            lambda: torch.masked_select(x, x > 1),
            lambda: torch.equal(x, x),
            lambda: x.to("meta"),
            lambda: torch.empty(3, device="meta").copy_(x),
            lambda: x.repeat_interleave(torch.ones(3, dtype=torch.int64)),
            lambda: x.unique(),
        ]
        for wait in waiting:
            with pytest.raises(RuntimeError, match="wait"), nothing_waits():
                wait()
        with nothing_waits():
            x.to("meta", non_blocking=True)
            x[torch.tensor([0, 1])] = x[:2] * 2
            x[1:].copy_(x[:-1].clone())


@pytest.mark.gpu
class TestOnAGpu:
    """By torch's own watch over synchronisation, and in a CUDA graph, which cannot be captured where anything waits."""

    FIRST = [Chunk([1, 2, 3, 4, 5], 0, [1]), Chunk([6, 7], 0, [0]), Chunk([8], 0, [3])]
    # A prompt's second piece, two decodes in neighbouring rows at different lengths, and a prompt that begins.
    MIXED = [Chunk([9, 10, 11], 5, [1]), Chunk([12], 2, [0]), Chunk([13], 1, [3]), Chunk([14, 15], 0, [2])]
    OTHERS = [Chunk([16, 17, 18], 5, [1]), Chunk([19], 2, [0]), Chunk([20], 1, [3]), Chunk([21, 22], 0, [2])]

    @pytest.fixture(params=["grouped", "stretched"])
    def model(self, request):
        copy = Llama(CONFIGS[request.param])
        copy.load_state_dict(MODELS[request.param].state_dict())
        return copy.requires_grad_(False).cuda()

    def run(self, model, cache, chunks, make=batch_of):
        step = make(chunks, block_size=cache.block_size, device=model.device, vocab_size=61)
        return model(step.tokens, cache, step)

    @pytest.mark.parametrize("make", [batch_of, padded_batch_of])
    def test_the_logits_are_the_cpus(self, model, make):
        on_cpu = Llama(model.config).requires_grad_(False)
        on_cpu.load_state_dict(model.state_dict())
        caches = [ContiguousCache(capacity=12, sequences=4) for _ in range(2)]
        for chunks in (self.FIRST, self.MIXED):
            got, expected = self.run(model, caches[0], chunks, make), self.run(on_cpu, caches[1], chunks, make)
            torch.testing.assert_close(got.cpu(), expected, atol=2e-4, rtol=1e-4)

    @pytest.mark.parametrize("make", [batch_of, padded_batch_of])
    def test_no_step_waits(self, model, make):
        for watched in (False, True):  # the first time, constants are sent to the device and libraries begin
            cache, row = ContiguousCache(capacity=12, sequences=4), ContiguousCache(capacity=12)
            tokens = torch.ones(2, 3, dtype=torch.int64, device="cuda")
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error" if watched else "default")
            try:
                for chunks in (self.FIRST, self.MIXED):
                    self.run(model, cache, chunks, make)
                self.run(model, NoCache(), self.FIRST, make)
                for T in (3, 1):
                    model(tokens[:, :T], row)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def test_the_watch_sees_what_waits(self):
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchroniz"):
                torch.ones(1, device="cuda").item()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_step_is_captured_in_a_graph_and_replayed_with_other_tokens(self, model):
        """Of the same lengths in the same rows, which this cache's calls are made for; and with room for more."""
        layout = Layout(tokens=9, sequences=6, blocks=1, logits=6)
        eager, captured = (ContiguousCache(capacity=12, sequences=4) for _ in range(2))
        for cache in (eager, captured):
            self.run(model, cache, self.FIRST)
        step, others = (batch_of(chunks, block_size=12, device="cuda", layout=layout)
                        for chunks in (self.MIXED, self.OTHERS))  # fmt: skip
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                model(step.tokens, captured, step)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(step.tokens, captured, step)
        for chunks, buffer in ((self.MIXED, step.buffer.clone()), (self.OTHERS, others.buffer)):
            step.buffer.copy_(buffer)
            graph.replay()
            expected = self.run(model, eager, chunks)
            torch.testing.assert_close(logits[:, :4], expected, atol=1e-4, rtol=1e-4)
