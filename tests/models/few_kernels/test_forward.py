"""The few-kernel step in the interpreter: the model's own tokens, and its own keys and values in the pages."""

import dataclasses

import pytest
import torch

from llmsys.cache import Chunk, ContiguousCache, PagedCache, batch_of
from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.models import Llama
from llmsys.models.few_kernels import FewKernelForward, plan_for, takes
from tests.models.few_kernels.steps import QWEN3, SMOLLM2, STRETCHED, Decoding, random_model, written

if not triton_installed() or not interpreting():
    pytest.skip("needs Triton's interpreter", allow_module_level=True)


def few(model, **options) -> FewKernelForward:
    """With parts of attention so small and few that sequences of some tokens have several tiles in one."""
    return FewKernelForward(model, plan=plan_for(model.config, 1, 4, 1).but(splits=2, block_n=16), **options)


@pytest.mark.parametrize("sizes", [QWEN3, SMOLLM2, STRETCHED], ids=["qwen3", "smollm2", "stretched"])
def test_tokens_keys_and_values_are_the_models(sizes):
    model = random_model(sizes)
    decoding = Decoding.of(model, [1, 46])
    forward, own, plain = few(model), decoding.cache(), decoding.cache()
    for _ in range(3):
        step = decoding.step(rows=3)
        expected = model(step.tokens, plain, step)
        got = forward(step.tokens, own, step)
        torch.testing.assert_close(got[:, :2], expected[:, :2], atol=1e-4, rtol=1e-4)
        assert got.isfinite().all()
        for a, b in zip(written(own, decoding), written(plain, decoding), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert decoding.append(got) == expected[0, :2].argmax(-1).tolist()


def test_padded_rows_write_nothing():
    decoding = Decoding.of(random_model(QWEN3, layers=1), [3])
    cache = decoding.cache()
    few(decoding.model)(decoding.step(rows=2).tokens, cache, decoding.step(rows=2))
    (spec,) = decoding.model.cache_spec().layers
    for pages in cache.pages_of(spec, decoding.model.device):
        assert pages.isfinite().all(dim=-1).sum() == 3 * spec.heads


def test_only_the_logits_that_are_asked_for_are_computed_and_hidden_is_what_the_head_is_given():
    decoding = Decoding.of(random_model(SMOLLM2, layers=1), [2, 5])
    model, step = decoding.model, decoding.step()
    second = dataclasses.replace(step, logits_indices=torch.tensor([1], dtype=torch.int32))
    forward, cache = few(model), decoding.cache()
    expected = model(step.tokens, decoding.cache(), step)
    torch.testing.assert_close(forward(step.tokens, cache, second), expected[:, 1:], atol=1e-4, rtol=1e-4)
    hidden = forward.hidden(step.tokens, cache, step)
    torch.testing.assert_close(model.head(hidden), expected, atol=1e-4, rtol=1e-4)


class Other(torch.nn.Linear):
    def __init__(self, inputs, outputs, sections=None, *, name=""):
        super().__init__(inputs, outputs, bias=False)


def test_it_says_what_it_cannot_take():
    model = random_model(QWEN3)
    pages = dict(num_blocks=4, spec=model.cache_spec())
    assert takes(model) and takes(model, PagedCache(**pages)) and takes(model, PagedCache("triton", **pages))
    assert not takes(model, PagedCache("torch", **pages))
    assert not takes(model, ContiguousCache(capacity=4))
    assert not takes(Llama(model.config, linear=Other))
    assert not takes(Llama(model.config, layers=range(1)))
    assert not takes(random_model(dict(QWEN3, head_size=24)))
    assert not takes(random_model(QWEN3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="layers.0.qkv is a Other"):
        FewKernelForward(Llama(model.config, linear=Other))


def test_steps_that_are_not_of_one_token_a_sequence_are_refused():
    decoding = Decoding.of(random_model(QWEN3, layers=1), [2, 5])
    forward, cache, step = few(decoding.model, most=2), decoding.cache(), decoding.step()
    with pytest.raises(ValueError, match="one token of each of 1 to 2"):
        forward(decoding.step(rows=3).tokens, cache, decoding.step(rows=3))
    prompt = batch_of([Chunk([1, 2], 0, [1])], block_size=4)
    with pytest.raises(ValueError, match="one token a sequence"):
        forward(prompt.tokens, cache, prompt)
    with pytest.raises(ValueError, match="cache must be one"):
        forward(step.tokens, ContiguousCache(capacity=4), step)


@pytest.mark.parametrize("wide, most", [(64, 4), (2080, 1)])
def test_a_wide_model_is_taken_for_one_sequence_alone_where_nobody_says_otherwise(wide, most):
    model = random_model(dict(QWEN3, hidden_size=wide), layers=1)
    assert FewKernelForward(model).most == most and FewKernelForward(model, most=3).most == 3
