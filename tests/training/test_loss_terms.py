"""A model that adds loss terms and changes itself after a step: accumulated, recomputed, interrupted and resumed.

The model is a tiny Llama that sorts its tokens into four bins, as a router sorts them to experts: a term pulls the bins
together, and after each step a bias moves against their loads.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from llmsys.models import Llama, NoCache, TrainingStep
from llmsys.training import TrainConfig, load_checkpoint, next_token_loss, save_checkpoint, train

SETTINGS = TrainConfig(steps=5, batch=2, context=12, learning_rate=3e-3, evaluate_every=5, evaluate_batches=1)
BINS = 4


class Sorting(Llama):
    """`seen` are the loads that each `after_step` was given; `runs` is how often tokens were sorted."""

    def __init__(self, *arguments, recompute=False, **keywords):
        super().__init__(*arguments, **keywords)
        self.register_buffer("bias", torch.zeros(BINS))
        self.recompute, self.runs, self.seen = recompute, 0, []

    def sort(self, x):
        """How evenly the tokens lie in the bins, a scalar, and how many lie in each."""
        self.runs += 1
        scores = (x[..., :BINS] * 30 + self.bias).softmax(-1).flatten(0, 1)
        counts = torch.bincount(scores.argmax(-1), minlength=BINS)
        return (scores.mean(0) * counts).sum() / len(scores), counts

    def training_step(self, tokens, backend):
        loss = next_token_loss(self, tokens, backend)
        _, (x,) = self.hidden(tokens[:, :-1], backend, taps=(1,))
        balance, counts = checkpoint(self.sort, x, use_reentrant=False) if self.recompute else self.sort(x)
        return TrainingStep(loss, {"balance": 0.5 * balance}, {"bins": counts})

    def after_step(self, loads):
        (load,) = loads.values()
        assert not torch.is_grad_enabled() and not load.requires_grad
        self.seen.append(load.clone())
        self.bias += 0.01 * (load.float().mean() - load).sign()


@pytest.fixture
def sorting(new_model):
    def make(**options):
        plain = new_model()
        model = Sorting(plain.config, plain.tokenizer, **options)
        model.load_state_dict(plain.state_dict(), strict=False)
        return model.requires_grad_(False)

    return make


def test_terms_are_reported_beside_the_loss_and_move_the_weights(sorting, new_model, corpus):
    model = sorting()
    first_batch = corpus.batches(2, 12, seed=0)[0]
    expected = model.training_step(first_batch, NoCache())
    run = train(model, corpus, SETTINGS)
    assert run.losses[0] == float(expected.loss) == train(new_model(), corpus, SETTINGS).losses[0]
    assert run.steps[0].terms == {"balance": float(expected.terms["balance"])}
    assert run.steps[0].gradient_norm != train(new_model(), corpus, SETTINGS).steps[0].gradient_norm
    assert train(new_model(), corpus, SETTINGS).steps[0].terms == {}


def test_the_gradient_is_that_of_the_sum(sorting, corpus):
    model = sorting().requires_grad_(True)
    done = model.training_step(corpus.batches(2, 12, seed=0)[0], NoCache())
    (done.loss + done.terms["balance"]).backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()])
    assert train(sorting(), corpus, SETTINGS).steps[0].gradient_norm == pytest.approx(float(norm), rel=1e-5)


def test_loads_add_up_over_the_batches_of_a_step(sorting, corpus):
    model, other = sorting(), sorting()
    train(model, corpus, replace(SETTINGS, accumulate=3))
    assert [int(load.sum()) for load in model.seen] == [3 * 2 * 12] * 5
    assert model.bias.abs().max() > 0
    batches = corpus.batches(2, 12, seed=0)
    assert torch.equal(model.seen[0], sum(other.training_step(batches[i], NoCache()).loads["bins"] for i in range(3)))


def test_terms_are_means_over_the_batches_of_a_step(sorting, corpus):
    run = train(sorting(), corpus, replace(SETTINGS, accumulate=3))
    batches, other = corpus.batches(2, 12, seed=0), sorting()
    each = [float(other.training_step(batches[i], NoCache()).terms["balance"]) for i in range(3)]
    assert run.steps[0].terms["balance"] == pytest.approx(sum(each) / 3, rel=1e-5)


def test_what_is_recomputed_is_not_counted_again(sorting, corpus):
    once, twice = sorting(), sorting(recompute=True)
    runs = [train(model, corpus, SETTINGS) for model in (once, twice)]
    assert (once.runs, twice.runs) == (5, 10), "it must have been computed again, or this says nothing"
    assert all(torch.equal(a, b) for a, b in zip(once.seen, twice.seen, strict=True))
    assert runs[0].losses == runs[1].losses and torch.equal(once.bias, twice.bias)


def test_loads_are_summed_over_ranks_once_a_step(sorting, corpus):
    given = []

    def of_three_alike(load):
        given.append(load.clone())
        return 3 * load

    model = sorting()
    train(model, corpus, replace(SETTINGS, accumulate=2), sum_over_ranks=of_three_alike)
    assert len(given) == 5
    assert all(torch.equal(seen, 3 * own) for seen, own in zip(model.seen, given, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(sorting, corpus, tmp_path, dtype, accumulate):
    settings = replace(SETTINGS, dtype=dtype, accumulate=accumulate)
    whole, model = sorting(), sorting()
    expected = train(whole, corpus, settings, out=tmp_path / "whole")
    steps = []
    train(
        sorting(), corpus, settings, out=tmp_path / "run", on_step=steps.append, should_stop=lambda: len(steps) == 2
    )
    again = train(model, corpus, settings, out=tmp_path / "run", resume=True)
    assert again.losses == expected.losses
    assert [step.terms for step in again.steps] == [step.terms for step in expected.steps]
    assert whole.bias.abs().max() > 0 and whole.bias.dtype == torch.float32
    state = whole.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_a_step_that_is_no_number_changes_nothing_afterwards(sorting, corpus):
    model = sorting()
    model.layers[1].down.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1"):
        train(model, corpus, SETTINGS)
    assert model.seen == [] and not model.bias.any()


def test_held_out_losses_are_the_next_tokens_alone(sorting, new_model, corpus):
    runs = [train(model, corpus, SETTINGS) for model in (sorting(), new_model())]
    assert runs[0].held_out[0] == runs[1].held_out[0]


def test_buffers_are_in_a_checkpoint_and_missing_ones_are_named(sorting, new_model, tmp_path):
    model, again = sorting(), sorting()
    model.bias += torch.tensor([0.5, -0.25, 0, 1])
    save_checkpoint(tmp_path / "one", model, None, {"step": 0})
    load_checkpoint(tmp_path / "one", again)
    assert torch.equal(again.bias, model.bias)
    save_checkpoint(tmp_path / "plain", new_model(), None, {"step": 0})
    assert not (tmp_path / "plain/training/buffers.safetensors").exists()
    with pytest.raises(ValueError, match="buffers.safetensors: cannot be read"):
        load_checkpoint(tmp_path / "plain", again)
    again.register_buffer("bias", torch.zeros(7))
    with pytest.raises(ValueError, match=r"holds no bias of shape \(7,\)"):
        load_checkpoint(tmp_path / "one", again)


def test_a_part_of_a_model_is_not_trained(tiny, corpus):
    with pytest.raises(ValueError, match="model must be a whole one to be trained"):
        train(Llama(tiny.config, layers=range(1)), corpus, SETTINGS)


def test_a_cache_by_name_is_no_attention_to_train_on(tiny, corpus):
    with pytest.raises(ValueError, match="in training, where there is none, attention must be a stage"):
        train(tiny, corpus, SETTINGS, attention="contiguous")
