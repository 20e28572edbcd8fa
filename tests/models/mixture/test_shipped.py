"""The small models that come with the package: they have learnt Python, and their loads are what their training was."""

from pathlib import Path

import pytest
import torch

from llmsys.bench.moe_training import SHIPPED
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.models import generate
from llmsys.models.mixture.shipped import FOLDER, load_shipped
from llmsys.moe import load_statistics
from llmsys.serving import Engine, SamplingParams
from llmsys.training import next_token_loss

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode
TEXT = (Path(__file__).parents[3] / "llmsys/moe/balance.py").read_text().encode()  # which they have not seen


@pytest.fixture(scope="module")
def models():
    return {name: load_shipped(name) for name in ("bias", "none")}


def windows(model):
    tokens = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    T = model.config.context_length
    return tokens[: len(tokens) // (T + 1) * (T + 1)].view(-1, T + 1)


def test_they_are_what_is_trained_under_that_name_and_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 4 * 2**20
    for name in ("bias", "none"):
        model = load_shipped(name)
        assert model.dtype == torch.float32 and len(model.tokenizer) == model.config.vocab_size
        for field in ("hidden_size", "layers", "router", "expert_size", "shared_size", "dense_layers", "mlp_size"):
            assert getattr(model.config, field) == getattr(SHIPPED.model, field)
        assert any(moe.router.bias.any() for moe in model.mixtures.values()) is (name == "bias")


@torch.no_grad()
def test_they_have_learnt_what_python_looks_like(models):
    for model in models.values():
        tokens = windows(model)
        mixed = tokens.flatten()[torch.randperm(tokens.numel())].view_as(tokens)  # the same bytes in another order
        assert next_token_loss(model, tokens) < 2.5 < next_token_loss(model, mixed)


@torch.no_grad()
def test_with_the_bias_loads_are_more_even(models):
    busiest = {}
    for name, model in models.items():
        routings = model.routed(windows(model)[:, :-1])[1]
        busiest[name] = load_statistics(torch.stack([routing.loads for routing in routings.values()])).busiest
    assert (busiest["bias"] < busiest["none"]).all()


@torch.no_grad()
def test_transformers_reads_the_files_as_the_same_model(models):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / "bias", dtype=torch.float32).eval()
    tokens = windows(models["bias"])[:2]
    torch.testing.assert_close(models["bias"](tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)


def test_the_engine_says_what_generate_says(models):
    prompts = ["def ", "import torch", "class Router"]
    for model in models.values():
        expected = [generate(model, prompt, max_new_tokens=20).tokens for prompt in prompts]
        said = Engine(model).generate(prompts, SamplingParams(max_tokens=20))
        assert [response.tokens for response in said] == expected


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="balance must be one of bias, none, got 'loss'"):
        load_shipped("loss")
