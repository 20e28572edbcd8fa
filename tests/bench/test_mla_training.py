"""Three kinds of attention in one model: what differs, what a row says, and that a run can be repeated."""

from dataclasses import replace

import pytest
import torch

from llmsys.bench.mla_training import (
    FULL,
    GQA,
    MHA,
    MLA,
    SHIPPED,
    TINY,
    TINY_TRAINING,
    row_of,
    table,
    train_one,
)
from llmsys.bench.moe_training import active_parameters
from llmsys.bench.record import new_record
from llmsys.models import DeepSeek, MixtureLlama, generate, load_model, save_model
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.training import Corpus
from tests.training.conftest import make_texts


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_texts({name: text * 3 for name, text in make_texts().items()}, byte_tokenizer())


@pytest.fixture(scope="module")
def trained(corpus):
    return {name: train_one(config, TINY_TRAINING, corpus, device="cpu") for name, config in TINY.items()}


def test_the_models_differ_in_attention_alone_and_are_about_as_large():
    with torch.device("meta"):
        models = {n: (DeepSeek if n == MLA else MixtureLlama)(config) for n, config in FULL.items()}
        small = DeepSeek(SHIPPED)
    kept = {name: model.cache_spec().bytes_per_token // 4 // 6 for name, model in models.items()}
    assert kept == {MHA: 512, GQA: 128, MLA: 112}
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in models.values()]
    assert 2.5e7 < min(sizes) and max(sizes) < 1.03 * min(sizes)
    active = [active_parameters(model) for model in models.values()]
    assert max(active) < 1.12 * min(active)
    assert 2 * sum(weight.numel() for weight in small.parameters()) < 2**20
    experts = [[weight.shape for weight in model.layers[3].moe.parameters()] for model in models.values()]
    assert experts[0] == experts[1] == experts[2]


def test_a_row_says_what_the_run_was(trained):
    for name, each in trained.items():
        row = row_of(name, each, TINY_TRAINING, points=3)
        assert row["window"] == 2 and len(row["losses"]) == 3
        assert row["losses"][0] == pytest.approx(sum(each.run.losses[:2]) / 2, abs=1e-4)
        assert row["cache_bytes_bf16"] == 2 * 2 * row["cache_numbers"] and len(row["busiest"]) == 1
        biases = [moe.router.bias for moe in each.model.mixtures.values()]
        assert all(0 < bias.abs().max() <= 1e-3 * TINY_TRAINING.steps + 1e-6 for bias in biases)
        assert all(step.terms["balance"] > 0 for step in each.run.steps)
    rows = [row_of(name, each, TINY_TRAINING) for name, each in trained.items()]
    assert table(new_record("mla_training", rows, {})).row_count == 3


def test_the_same_seed_is_the_same_run_and_another_one_is_not(trained, corpus):
    again = train_one(TINY[MLA], TINY_TRAINING, corpus, device="cpu")
    assert again.run.losses == trained[MLA].run.losses and again.last == trained[MLA].last
    other = train_one(TINY[MLA], replace(TINY_TRAINING, seed=1, steps=1), corpus, device="cpu")
    assert other.run.losses[0] != trained[MLA].run.losses[0]


def test_what_is_written_is_read_again_and_says_the_same(trained, tmp_path):
    model = trained[MLA].model
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is DeepSeek
    tokens = torch.randint(0, 257, (1, 20))
    assert torch.equal(loaded(tokens), model(tokens))
    assert generate(loaded, "def ", max_new_tokens=5).tokens == generate(model, "def ", max_new_tokens=5).tokens
