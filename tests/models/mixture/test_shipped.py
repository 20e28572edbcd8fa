"""The small mixture that comes with the package: it has learnt Python, and its loads are as uneven as left alone."""

from pathlib import Path

import pytest
import torch

import llmsys
from llmsys.bench.moe_training import SHIPPED
from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.models import MixtureLlama, generate
from llmsys.models.mixture.shipped import FOLDER, load_shipped
from llmsys.moe import load_statistics
from llmsys.serving import Engine, SamplingParams
from llmsys.training import next_token_loss

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode
PACKAGE = Path(llmsys.__file__).parent
TEXT = (PACKAGE / "moe/balance.py").read_text().encode()  # which it has not seen


@pytest.fixture(scope="module")
def model() -> MixtureLlama:
    return load_shipped()


def windows(model):
    tokens = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    T = model.config.context_length
    return tokens[: len(tokens) // (T + 1) * (T + 1)].view(-1, T + 1)


def test_all_weights_that_come_with_the_package_have_four_mib_at_most():
    folders = {file.parent for file in PACKAGE.rglob("*.safetensors")}
    assert FOLDER in folders
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 4 * 2**20


def test_it_is_what_is_trained_under_that_name(model):
    assert type(model) is MixtureLlama and model.dtype == torch.float32 and model.is_whole
    assert {**vars(model.config), "name": ""} == {**vars(SHIPPED.model), "name": ""}
    assert not any(moe.router.bias.any() for moe in model.mixtures.values())  # nothing has kept its loads even


@torch.no_grad()
def test_it_has_learnt_what_python_looks_like_and_leaves_most_to_a_few_experts(model):
    tokens = windows(model)
    mixed = tokens.flatten()[torch.randperm(tokens.numel())].view_as(tokens)  # the same bytes in another order
    assert next_token_loss(model, tokens) < 2.5 < next_token_loss(model, mixed)
    routings = model.routed(tokens[:, :-1])[1].values()
    assert load_statistics(torch.stack([routing.loads for routing in routings])).busiest.min() > 4


@torch.no_grad()
def test_transformers_reads_the_files_as_the_same_model(model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokens = windows(model)[:2]
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)


def test_the_engine_says_what_generate_says(model):
    prompts = ["def ", "import torch", "class Router"]
    expected = [generate(model, prompt, max_new_tokens=20).tokens for prompt in prompts]
    said = Engine(model).generate(prompts, SamplingParams(max_tokens=20))
    assert [response.tokens for response in said] == expected
