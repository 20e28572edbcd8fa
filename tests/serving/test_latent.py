"""A model with latent attention and experts in the engine: however it is served, it says what transformers says."""

import random
from dataclasses import replace

import pytest
import torch

from llmsys.cache import PagedCache
from llmsys.models import load_model
from llmsys.models.deepseek import SMALL, DeepSeek
from llmsys.serving import Engine, SamplingParams
from llmsys.serving.execution import Execution
from tests.models.deepseek.conftest import V3, VARIANTS, theirs
from tests.serving.conftest import LONGEST, Pair

WIDE = replace(SMALL, layers=3, latent_size=512, head_size=64, nope_size=128, value_size=128)
ANSWER = SamplingParams(max_tokens=LONGEST, ignore_eos=True)


@pytest.fixture(scope="module")
def latent(tmp_path_factory) -> Pair:
    """In fp64: tokens that are near each other at a router go the same way in any batch."""
    path = tmp_path_factory.mktemp("latent")
    assert VARIANTS["v3"][1] is V3
    other = theirs("v3", max_position_embeddings=256)
    other.save_pretrained(path)
    other.set_experts_implementation("eager")  # the default knows no fp64
    return Pair(load_model(path, dtype=torch.float64), other.double())


def prompts(n: int) -> list[list[int]]:
    """Some of which begin alike."""
    gen = random.Random(n)
    base = [gen.randrange(3, 97) for _ in range(60)]
    return [[*base[: gen.choice([0, 16, 33, 60])], *(gen.randrange(3, 97) for _ in range(gen.randint(1, 9)))]
            for _ in range(n)]  # fmt: skip


def check(pair: Pair, engine: Engine, asked: list[list[int]]) -> None:
    for prompt, response in zip(asked, engine.generate(asked, ANSWER), strict=True):
        assert pair.agrees(prompt, response.tokens), prompt
    assert engine.pool.stats.used == 0


@pytest.mark.parametrize("execution", [Execution(ahead=False), Execution(ahead=True, graphs=True, mixed_graphs=True)])
def test_in_chunks_with_hits_and_preempted_it_says_what_transformers_says(latent, execution):
    engine = Engine(
        latent.ours, num_blocks=24, block_size=8, max_tokens_per_step=13, max_sequences=6, execution=execution
    )
    check(latent, engine, prompts(8))
    totals = engine.metrics.totals
    assert totals.preemptions and totals.hit_tokens


def test_a_token_takes_what_one_latent_takes(latent):
    engine = Engine(latent.ours, num_blocks=10, block_size=8)
    engine.generate([[5, 9, 2]], ANSWER)
    cache = engine.runner.cache
    assert latent.ours.cache_spec().bytes_per_token == 3 * (16 + 8) * 8
    assert cache.bytes == 10 * 8 * latent.ours.cache_spec().bytes_per_token


def test_another_models_cache_is_refused_in_words(latent):
    wrong = PagedCache(capacity=20, spec=load_wider(latent.ours).cache_spec())
    with pytest.raises(ValueError, match="layer 0 must hand over keys of 1 heads.*Dk = 25.*got keys.*Dk = 24"):
        latent.ours(torch.tensor([[5, 6]]), wrong)


def load_wider(model):
    """One like it whose latents are longer by one."""
    with torch.device("meta"):
        return type(model)(replace(model.config, latent_size=17)).double()


@pytest.mark.gpu
@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "with the published latents"])
@torch.inference_mode()
def test_on_a_gpu_its_tokens_are_among_the_best_by_eager_codes_logits(config):
    """All experts for all tokens: in 16 bits, a choice among near ones would differ from one form to the other."""
    torch.manual_seed(0)
    router = replace(config.router, k=config.router.experts, groups=1, kept_groups=1)
    config = replace(config, router=router)
    model = DeepSeek(config).requires_grad_(False).to("cuda", torch.bfloat16)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.copy_(torch.randn_like(weight) * (0.1 if "experts" in name else 0.05))
    engine = Engine(model, num_blocks=60, block_size=64, max_tokens_per_step=300, max_sequences=12, max_model_len=1024)
    gen = random.Random(0)
    base = [gen.randrange(997) for _ in range(300)]
    asked = [[*base[: gen.randint(0, 300)], *(gen.randrange(997) for _ in range(gen.randint(1, 9)))] for _ in range(24)]
    responses = engine.generate(asked, SamplingParams(max_tokens=40, ignore_eos=True))
    assert engine.metrics.totals.hit_tokens and engine.runner.graphs.captured
    exact = DeepSeek(config).requires_grad_(False).to("cuda")
    exact.load_state_dict({name: x.float() for name, x in model.state_dict().items()})
    for response in responses:
        whole = torch.tensor([[*response.prompt_tokens, *response.tokens]], device="cuda")
        logits, eager = (m(whole)[0, len(response.prompt_tokens) - 1 : -1].float() for m in (exact, model))
        error = (eager - logits).abs().amax()
        behind = logits.amax(1) - logits[range(40), response.tokens]
        assert behind.max() <= 4 * error
