"""The model that comes with the package: small, trained, and the same with a cache of latents as without."""

from pathlib import Path

import pytest
import torch

from llmsys.bench.mla_training import SHIPPED
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.models import DeepSeek, generate
from llmsys.models.deepseek.shipped import FOLDER, load_shipped
from llmsys.moe import load_statistics
from llmsys.serving import Engine, SamplingParams
from llmsys.training import next_token_loss

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode
TEXT = (Path(__file__).parents[3] / "llmsys/moe/balance.py").read_text().encode()  # which it has not seen


@pytest.fixture(scope="module")
def model() -> DeepSeek:
    return load_shipped()


def windows(model):
    tokens = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    T = model.config.context_length
    return tokens[: len(tokens) // (T + 1) * (T + 1)].view(-1, T + 1)


def test_it_is_what_is_trained_under_that_name_and_small(model):
    assert type(model) is DeepSeek and model.dtype == torch.float32 and model.is_whole
    assert {**vars(model.config), "name": ""} == {**vars(SHIPPED), "name": ""}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2**20


@torch.no_grad()
def test_it_has_learnt_what_python_looks_like_and_uses_its_experts(model):
    tokens = windows(model)
    mixed = tokens.flatten()[torch.randperm(tokens.numel())].view_as(tokens)  # the same bytes in another order
    assert next_token_loss(model, tokens) < 2.5 < next_token_loss(model, mixed)
    routings = model.routed(tokens[:, :-1])[1].values()
    assert load_statistics(torch.stack([routing.loads for routing in routings])).busiest.max() < 2.5


@torch.no_grad()
def test_transformers_reads_the_files_as_the_same_model(model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokens = windows(model)[:2]
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)


def test_with_a_cache_of_latents_and_in_the_engine_it_says_the_same_as_without(model):
    prompts = ["def ", "import torch", "class Router"]
    expected = [generate(model, prompt, attention="naive", max_new_tokens=20).tokens for prompt in prompts]
    assert [generate(model, each, attention="paged", max_new_tokens=20).tokens for each in prompts] == expected
    said = Engine(model).generate(prompts, SamplingParams(max_tokens=20))
    assert [response.tokens for response in said] == expected
