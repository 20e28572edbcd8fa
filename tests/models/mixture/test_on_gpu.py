"""A model with mixtures of experts on a GPU: served with graphs, and trained in bf16."""

import random
from dataclasses import replace

import pytest
import torch

from llmsys.models import Balance, MixtureConfig, MixtureLlama
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.moe import RouterConfig
from llmsys.serving import Engine, SamplingParams
from llmsys.training import Corpus, TrainConfig, train
from tests.training.conftest import make_texts

pytestmark = pytest.mark.gpu
CONFIG = MixtureConfig(
    "small", vocab_size=257, hidden_size=128, layers=3, heads=4, kv_heads=2, head_size=64, mlp_size=192,
    context_length=512, qk_norm=True, router=RouterConfig(16, 3, "sigmoid", bias=True), expert_size=64, shared_size=64,
    dense_layers=(0,),
)  # fmt: skip


def small(device="cuda", dtype=torch.float32, **options) -> MixtureLlama:
    torch.manual_seed(0)
    model = MixtureLlama(CONFIG, byte_tokenizer(), **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() >= 2 else 1))
    return model.requires_grad_(False).to(device, dtype)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-3), (torch.bfloat16, 0.5)])
def test_the_engines_tokens_are_the_best_by_the_cpus_logits(dtype, close):
    """All but a few: where two experts are as good as each other, rounding chooses, and another expert is another
    model."""
    random.seed(1)
    prompts = [[random.randrange(257) for _ in range(random.randint(1, 90))] for _ in range(20)]
    said = Engine(small(dtype=dtype), num_blocks=300, block_size=16, max_sequences=12).generate(
        prompts, SamplingParams(max_tokens=30, ignore_eos=True)
    )
    exact, behind = small("cpu"), []
    for response in said:
        whole = torch.tensor([[*response.prompt_tokens, *response.tokens]])
        logits = exact(whole)[0, len(response.prompt_tokens) - 1 : -1]
        behind.append(logits.amax(1) - logits[range(30), response.tokens])
    assert (torch.cat(behind) < close).float().mean() > 0.97


def test_it_trains_in_bf16_and_loads_add_up():
    corpus = Corpus.from_texts({name: text * 3 for name, text in make_texts().items()}, byte_tokenizer())
    seen = []

    class Watched(MixtureLlama):
        def after_step(self, loads):
            seen.append({name: int(load.sum()) for name, load in loads.items()})
            super().after_step(loads)

    torch.manual_seed(0)
    model = Watched(CONFIG, byte_tokenizer(), balance=Balance("sequence", 1e-3, 1e-2)).cuda()
    settings = TrainConfig(steps=30, batch=8, context=64, learning_rate=3e-3, dtype="bfloat16", evaluate_batches=1)
    run = train(model, corpus, replace(settings, evaluate_every=30))
    assert run.losses[-1] < run.losses[0] - 1 and run.held_out[30] < run.held_out[0]
    assert seen == [{"moe.1": 8 * 64 * 3, "moe.2": 8 * 64 * 3}] * 30
    assert all(moe.router.bias.dtype == torch.float32 and moe.router.bias.any() for moe in model.mixtures.values())
