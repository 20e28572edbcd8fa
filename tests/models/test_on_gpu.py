"""A model on a GPU: the same logits and the same words there as on the CPU, by every stage."""

import pytest
import torch

from llmsys.attention import get_stage
from llmsys.models import Llama, LlamaConfig, NoCache, generate

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model() -> Llama:
    """A random one, large enough for the GPU's stages, with heads of 64 of which two share their keys."""
    torch.manual_seed(0)
    config = LlamaConfig(
        name="small", vocab_size=97, hidden_size=256, layers=2, heads=4, kv_heads=2, head_size=64, mlp_size=384,
        context_length=512,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def on_gpu(model) -> Llama:
    copy = Llama(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False).cuda()


@pytest.mark.parametrize("stage", ["naive", "online", "tiled", "flash", "sdpa", "auto"])
def test_logits_are_the_cpus(model, on_gpu, stage):
    tokens = torch.randint(0, 97, (2, 150))
    expected = model(tokens, NoCache(get_stage("sdpa")))
    got = on_gpu(tokens.cuda(), NoCache(get_stage(stage)))
    torch.testing.assert_close(got.cpu(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("stage", ["naive", "flash", "sdpa", "auto"])
def test_greedy_tokens_are_the_cpus(model, on_gpu, stage):
    prompt = [5, 11, 2, 90, 3]
    assert generate(on_gpu, prompt, attention=stage, max_new_tokens=24).tokens == (
        generate(model, prompt, max_new_tokens=24).tokens
    )


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)
@pytest.mark.parametrize("stage", ["flash", "hopper", "auto"])
def test_in_half_precision_a_stage_errs_like_torchs_own(model, on_gpu, stage):
    half = Llama(model.config)
    half.load_state_dict(model.state_dict())
    half = half.requires_grad_(False).cuda().bfloat16()
    tokens = torch.randint(0, 97, (2, 300), device="cuda")
    exact = on_gpu(tokens, NoCache(get_stage("sdpa")))

    def error(stage):
        return (half(tokens, NoCache(get_stage(stage))).float() - exact).norm().item()

    assert error(stage) <= 1.2 * error("sdpa")
