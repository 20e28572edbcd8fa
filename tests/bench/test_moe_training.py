"""The four arms: what a run records is what the run did, and the same seed is the same first model."""

from dataclasses import replace

import pytest
import torch

from llmsys.bench import recorded
from llmsys.bench.moe_training import (
    ARMS,
    BIAS,
    FULL,
    NONE,
    SHIPPED,
    TINY,
    Watched,
    active_parameters,
    held_out_loads,
    measure,
    row_of,
    table,
    train_arm,
)
from llmsys.models import MixtureLlama
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.training import Corpus
from tests.training.conftest import make_texts


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_texts({name: text * 3 for name, text in make_texts().items()}, byte_tokenizer())


@pytest.fixture(scope="module")
def runs(corpus):
    return {arm: train_arm(TINY, arm, corpus, device="cpu") for arm in ARMS}


def test_every_arm_begins_alike_and_only_one_moves_its_biases(runs):
    assert len({run.losses[0] for run in runs.values()}) == 1
    assert len({run.last for run in runs.values()}) > 1
    for arm, run in runs.items():
        moved = [moe.router.bias for moe in run.model.mixtures.values()]
        assert all(bool(bias.any()) is (arm == BIAS) for bias in moved)
    for bias in (moe.router.bias for moe in runs[BIAS].model.mixtures.values()):
        assert float(bias.abs().max()) <= TINY.rate * TINY.training.steps + 1e-6


def test_a_runs_loads_are_those_of_its_tokens(runs):
    settings, config = TINY.training, TINY.model
    for run in runs.values():
        assert run.steps.shape == (settings.steps, len(run.model.mixtures), config.experts)
        assert (run.steps.sum(-1) == settings.batch * settings.context * config.router.k).all()
        assert (run.loads.sum(-1) == TINY.held_out * settings.batch * settings.context * config.router.k).all()
        mean = run.steps.double().mean(-1)
        torch.testing.assert_close(run.busiest(), run.steps.amax(-1) / mean)
        both = run.steps[:2].sum(0)
        torch.testing.assert_close(run.busiest(2)[0], both.amax(-1) / both.double().mean(-1))
        assert run.in_sequence >= 1


def test_loads_in_a_sequence_are_counted_by_sequence(corpus):
    model = MixtureLlama(TINY.model, byte_tokenizer()).requires_grad_(False)
    batches = corpus.held_out_batches(2, 16)
    loads, in_sequence = held_out_loads(model, batches, 2)
    expected, busiest = torch.zeros_like(loads), []
    for i in range(2):
        for sequence in batches[i][:, :-1]:
            for layer, routing in enumerate(model.routed(sequence[None])[1].values()):
                expected[layer] += routing.loads
                busiest.append(float(routing.loads.max() / routing.loads.double().mean()))
    assert torch.equal(loads, expected)
    assert in_sequence == pytest.approx(sum(busiest) / len(busiest))


def test_a_row_has_curves_of_at_most_so_many_points_and_its_arms_settings(runs):
    row = row_of(runs[BIAS], TINY, points=4)
    assert row["window"] == 2 and len(row["losses"]) == len(row["busiest"]) == 3
    assert row["losses"][0] == pytest.approx(sum(runs[BIAS].losses[:2]) / 2, abs=1e-4)
    assert (row["alpha"], row["rate"]) == (0.0, TINY.rate) and row["held_out"][0][0] == 0
    assert row["parameters"] > row["active"] == active_parameters(runs[BIAS].model)


def test_active_parameters_are_those_that_a_gradient_of_one_token_reaches():
    model = Watched(replace(TINY.model, tied_embeddings=False), byte_tokenizer())
    x, routings = model.routed(torch.tensor([[65]]))
    model.head(x).sum().backward()
    touched = 0
    for name, weight in model.named_parameters():
        whole = ".experts." not in name
        touched += weight.numel() if whole else int(weight.grad.flatten(1).any(1).sum()) * weight[0].numel()
    assert touched == active_parameters(model)


def test_the_sizes_are_what_they_are_called_and_the_small_one_can_be_shipped():
    with torch.device("meta"):
        full, small = (sum(w.numel() for w in MixtureLlama(size.model).parameters()) for size in (FULL, SHIPPED))
    assert 10e6 < full < 100e6 and FULL.model.experts >= 32
    assert 2 * small < 2 * 2**20  # in two bytes a number: half of what may be shipped in all


def test_an_arm_that_is_none_is_refused(corpus):
    with pytest.raises(ValueError, match="arm must be one of none, sequence, batch, bias, got 'loss'"):
        train_arm(TINY, "loss", corpus)


def test_the_record_has_a_row_an_arm_and_a_table():
    record = measure(quick=True)
    assert [row["name"] for row in record.rows][:4] == list(ARMS) and record.rows[0]["name"] == NONE
    assert table(record).row_count == len(ARMS)


def test_the_record_is_of_what_the_command_repeats():
    rows = recorded("moe_training", "H200").rows
    assert [(row["name"], row["seed"]) for row in rows] == [(arm, seed) for seed in range(3) for arm in ARMS]
    settings, config = FULL.training, FULL.model
    for row in rows:
        assert (row["steps"], row["tokens_a_step"]) == (settings.steps, settings.batch * settings.context)
        assert (row["alpha"], row["rate"]) == (FULL.arms()[row["name"]].alpha, FULL.arms()[row["name"]].rate)
        assert (row["experts"], row["k"], row["dtype"]) == (config.experts, config.router.k, settings.dtype)
        assert 10e6 < row["parameters"] < 100e6 and len(row["loads"]) == len(row["layers"]) == len(row["busiest"][0])
