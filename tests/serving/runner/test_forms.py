"""Which form of the model a step is computed by: the same tokens by each, and errors where one cannot be."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from llmsys.cache import PagedCache
from llmsys.models import Llama, LlamaConfig
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.runner.forms import Forms
from llmsys.serving.sampling.sampling_params import SamplingParams

pytest.importorskip("triton")
PROMPTS = [[5, 9, 30], [7], [12, 44]]


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(2)
    config = LlamaConfig(
        name="small", vocab_size=67, hidden_size=48, layers=1, heads=4, kv_heads=2, head_size=16, mlp_size=80,
        context_length=64, qk_norm=True,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.4 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


def said(model, execution):
    """The tokens of some requests, of which some end before the others, and how each step was computed."""
    engine = Engine(model, num_blocks=40, block_size=4, max_sequences=6, execution=execution)
    launch, forms = engine.runner.launch, []

    def watched(plan):
        launched = launch(plan)
        decodes = len(plan.work) if all(len(work.tokens) == 1 for work in plan.work) else 0
        forms.append((decodes, launched.form, launched.bucket))
        return launched

    engine.runner.launch = watched
    params = [SamplingParams(max_tokens=2 + i) for i in range(len(PROMPTS))]
    return [response.tokens for response in engine.generate(PROMPTS, params)], forms


def test_every_form_says_the_same_tokens(model):
    expected, forms = said(model, Execution())
    assert {form for _, form, _ in forms} == {"plain"} and {bucket for *_, bucket in forms} == {None}
    tokens, forms = said(model, Execution(fused=True))
    assert tokens == expected and {form for _, form, _ in forms} == {"fused"}
    tokens, forms = said(model, Execution(fused=True, few_kernels=True, graphs=True))
    assert tokens == expected
    most = Forms(model, cache_of(model), Execution(few_kernels=True)).most
    for decodes, form, bucket in forms:
        few = decodes and bucket <= most
        assert form == ("few kernels" if few else "fused")
    assert {"few kernels", "fused"} == {form for _, form, _ in forms}


def cache_of(model, **more) -> PagedCache:
    return PagedCache(num_blocks=40, block_size=4, spec=model.cache_spec(), **more)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU they are used where they can be")
def test_on_a_cpu_the_model_itself_is_run_where_nobody_asks(model):
    forms = Forms(model, cache_of(model), Execution())
    assert forms.of(1).name == forms.of(0).name == "plain" and forms.most == 0


def test_a_form_that_cannot_be_is_refused_where_it_is_asked_for(model):
    with pytest.raises(ValueError, match=r"execution\.few_kernels"):
        Forms(model, cache_of(model, kernel="torch"), Execution(few_kernels=True))
    with pytest.raises(ValueError, match=r"execution\.fused"):
        Forms(Other(), cache_of(model), Execution(fused=True))
    assert Forms(Other(), cache_of(model), Execution()).of(1).name == "plain"


class Other(torch.nn.Module):
    """A model that is no Llama."""

    device, dtype = torch.device("cpu"), torch.float32

    def hidden(self, tokens, backend=None, batch=None):
        raise NotImplementedError
