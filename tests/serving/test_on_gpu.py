"""The engine on a GPU: the CPU's tokens in fp32, tokens as good as any in bf16, nothing waited for but the result."""

import random

import pytest
import torch

from llmsys.models import Llama, LlamaConfig
from llmsys.serving.engine import Engine
from llmsys.serving.memory import free_memory
from llmsys.serving.sampling.sampler import Draw, choose
from llmsys.serving.sampling.sampling_params import SamplingParams

pytestmark = pytest.mark.gpu
CLOSE = 2e-3  # logits that are nearer than this may change places, in fp32


@pytest.fixture(scope="module")
def on_cpu() -> Llama:
    """A random model with heads of 64, of which two share their keys."""
    torch.manual_seed(0)
    config = LlamaConfig(
        name="small", vocab_size=997, hidden_size=256, layers=3, heads=4, kv_heads=2, head_size=64, mlp_size=384,
        context_length=512,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


def moved(model, dtype) -> Llama:
    copy = Llama(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False).to("cuda", dtype)


def prompts():
    gen = random.Random(1)
    base = [gen.randrange(997) for _ in range(200)]
    return [[*base[: gen.randint(0, 200)], *(gen.randrange(997) for _ in range(gen.randint(1, 9)))] for _ in range(24)]


def answers(model, **more):
    """Of a pool that is too small for all of them."""
    engine = Engine(model, num_blocks=30, block_size=16, max_tokens_per_step=100, max_sequences=12, **more)
    said = engine.generate(prompts(), SamplingParams(max_tokens=40))
    totals = engine.metrics.totals
    assert totals.preemptions and totals.hit_tokens and engine.pool.stats.used == 0
    return said


@torch.no_grad()
def teacher_forced(model, response):
    """The logits at each place of an answer."""
    whole = torch.tensor([[*response.prompt_tokens, *response.tokens]], device=model.device)
    return model(whole)[0, len(response.prompt_tokens) - 1 : -1].double()


def test_in_fp32_the_tokens_are_the_best_by_the_cpus_logits(on_cpu):
    for response in answers(moved(on_cpu, torch.float32)):
        logits = teacher_forced(on_cpu, response)
        behind = logits.amax(1) - logits[range(40), response.tokens]
        assert len(response.tokens) == 40 and behind.max() < CLOSE


def test_in_bf16_a_token_is_behind_the_best_by_no_more_than_eager_code_errs(on_cpu):
    half = moved(on_cpu, torch.bfloat16)
    said = answers(half)
    exact = [teacher_forced(on_cpu, response) for response in said]
    eager = [teacher_forced(half, response).cpu() for response in said]
    error = max((a - b).abs().max().item() for a, b in zip(eager, exact, strict=True))
    for response, logits in zip(said, exact, strict=True):
        behind = logits.amax(1) - logits[range(40), response.tokens]
        assert behind.max() <= 2 * 2 * error  # of both logits, each of which may err twice as much as eager code


def test_nothing_is_waited_for_but_the_result(on_cpu):
    engine = Engine(moved(on_cpu, torch.bfloat16), num_blocks=200, max_tokens_per_step=64, max_sequences=8)
    engine.generate(prompts()[:4], SamplingParams(max_tokens=4, n=2, temperature=1.0))  # kernels are compiled
    launch = engine.runner.launch

    def watched(plan):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(plan)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    engine.runner.launch = watched
    kinds = [dict(), dict(temperature=1.0), dict(temperature=0.9, top_k=20, top_p=0.9, n=3), dict(logprobs=4)]
    params = [SamplingParams(max_tokens=8, **kinds[i % 4]) for i in range(12)]
    said = engine.generate(prompts()[:12], params)
    assert all(answer.reason == "length" for response in said for answer in response.answers)


def test_a_seed_draws_on_a_gpu_what_it_draws_on_a_cpu():
    logits = torch.randn(300, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
    kinds = [{}, dict(temperature=1.0), dict(temperature=0.8, top_k=40), dict(temperature=1.2, top_p=0.9)]
    draws = [Draw(SamplingParams(**kinds[i % 4], logprobs=i % 3 or None), i, i * i) for i in range(300)]
    here, there = choose(logits, draws).fetch(), choose(logits.cuda(), draws).fetch()
    assert [each.token for each in here] == [each.token for each in there]
    for a, b in zip(here, there, strict=True):
        assert [token for token, _ in a.top_logprobs] == [token for token, _ in b.top_logprobs]


def test_what_is_free_is_measured(on_cpu):
    model = moved(on_cpu, torch.bfloat16)
    sizes = dict(block_size=16, tokens=2048, sequences=64)
    before = free_memory(model, **sizes)
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0 < before < 0.9 * total
    taken = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    assert before - free_memory(model, **sizes) == pytest.approx(0.9 * taken.nbytes, rel=0.1)
