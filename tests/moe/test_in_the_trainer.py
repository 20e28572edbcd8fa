"""A tiny Llama whose MLPs are mixtures of experts, in the trainer: losses, loads and biases over steps and ranks."""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from llmsys.attention.rotary import rotation
from llmsys.models import Llama, TrainingStep
from llmsys.models.training_step import token_loss
from llmsys.moe import MixtureOfExperts, RouterConfig, balance_loss, load_statistics
from llmsys.training import Corpus, TrainConfig, train
from tests.training.conftest import make_model, make_texts, make_tokenizer

SETTINGS = TrainConfig(steps=4, batch=2, context=16, learning_rate=3e-3, evaluate_every=50, evaluate_batches=1)
EXPERTS = 8
ROUTER = RouterConfig(EXPERTS, 2, "sigmoid", bias=True)


class Mixed(Llama):
    """`seen` has what each `after_step` was given."""

    def __init__(self, *arguments, rate=0.01, alpha=0.0, recompute=False):
        super().__init__(*arguments)
        self.rate, self.alpha, self.recompute, self.seen = rate, alpha, recompute, []
        self.mixtures = torch.nn.ModuleList(MixtureOfExperts(32, 16, ROUTER, shared_size=16) for _ in self.layers)
        for layer, mixture in zip(self.layers, self.mixtures, strict=True):
            del layer.gate_up, layer.down
            layer.mlp = lambda x, mixture=mixture: mixture(x)[0]

    def training_step(self, tokens, backend):
        seen, expected = tokens[:, :-1], tokens[:, 1:]
        batch, x = backend.begin(seen), self.embedding(seen)
        turn = rotation(batch.positions, self.config.head_size, base=self.config.rope_base)
        terms, loads = [], {}

        def run(x, layer, mixture):
            x = x + layer.attention(layer.attention_norm(x), turn, backend, batch)
            y, routing = mixture(layer.mlp_norm(x))
            return x + y, balance_loss(routing, sequences=len(tokens)), routing.loads

        for layer, mixture in zip(self.layers, self.mixtures, strict=True):
            arguments = (x, layer, mixture)
            x, term, load = checkpoint(run, *arguments, use_reentrant=False) if self.recompute else run(*arguments)
            terms.append(self.alpha * term)
            loads[f"moe.{layer.index}"] = load
        return TrainingStep(token_loss(self.head(self.norm(x)), expected), {"balance": sum(terms)}, loads)

    def after_step(self, loads):
        self.seen.append(loads)
        for i, mixture in enumerate(self.mixtures):
            mixture.after_step(loads[f"moe.{i}"], self.rate)


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_texts(make_texts(), make_tokenizer())


def mixed(**options) -> Mixed:
    plain = make_model()
    return Mixed(plain.config, plain.tokenizer, **options).requires_grad_(False)


def test_its_loss_falls_and_its_loads_are_those_of_all_tokens_of_a_step(corpus):
    model = mixed(alpha=1e-2)
    run = train(model, corpus, replace(SETTINGS, steps=12, accumulate=2))
    assert run.losses[-1] < run.losses[0] - 0.3
    assert all(step.terms["balance"] > 0 for step in run.steps)
    tokens = 2 * SETTINGS.batch * SETTINGS.context
    assert all(int(load.sum()) == 2 * tokens for loads in model.seen for load in loads.values())


def test_recomputation_changes_neither_loads_nor_weights(corpus):
    plain, again = mixed(alpha=1e-2), mixed(alpha=1e-2, recompute=True)
    for model in (plain, again):
        train(model, corpus, SETTINGS)
    assert [{n: x.tolist() for n, x in each.items()} for each in plain.seen] == [
        {n: x.tolist() for n, x in each.items()} for each in again.seen
    ]
    pairs = zip(plain.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_bias_follows_the_loads_of_all_ranks_and_not_this_ones(corpus):
    model, others = mixed(), torch.tensor([500, 0, 0, 0, 0, 0, 0, 0])
    before = [mixture.router.bias.clone() for mixture in model.mixtures]
    train(model, corpus, replace(SETTINGS, steps=1), sum_over_ranks=lambda load: load + others)
    for bias, mixture in zip(before, model.mixtures, strict=True):
        moved = mixture.router.bias - bias
        assert moved[0] < 0 and (moved[1:] > 0).all()  # nobody else has as many as the mean of both ranks


def test_with_the_bias_experts_get_more_even_loads_than_without(corpus):
    settings, busiest = replace(SETTINGS, steps=40, batch=4), {}
    for rate in (0.0, 0.02):
        model = mixed(rate=rate)
        train(model, corpus, settings)
        of_steps = torch.stack([torch.stack(list(loads.values())) for loads in model.seen[-10:]])
        busiest[rate] = float(load_statistics(of_steps.sum(0)).busiest.max())
    assert busiest[0.02] < 0.8 * busiest[0.0] and busiest[0.02] < 1.6, busiest
