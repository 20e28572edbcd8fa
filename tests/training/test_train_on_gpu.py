"""Training on a GPU: the stages learn alike there, and a run goes on where it was interrupted."""

from dataclasses import replace

import pytest
import torch

from llmsys.models import Llama, LlamaConfig
from llmsys.training import TrainConfig, train

pytestmark = pytest.mark.gpu
SETTINGS = TrainConfig(steps=30, batch=4, context=64, learning_rate=3e-3, evaluate_every=15, evaluate_batches=2)


@pytest.fixture
def new_model(tokenizer):
    def make() -> Llama:
        torch.manual_seed(0)
        config = LlamaConfig(
            name="small", vocab_size=258, hidden_size=128, layers=2, heads=4, kv_heads=2, head_size=64, mlp_size=192,
            context_length=64,
        )  # fmt: skip
        return Llama(config, tokenizer).requires_grad_(False).eval().cuda()

    return make


@pytest.mark.parametrize("stage", ["tiled", "flash", "auto"])
def test_in_fp32_every_stage_learns_the_same(new_model, corpus, stage):
    runs = [train(new_model(), corpus, SETTINGS, attention=each) for each in ("sdpa", stage)]
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=0, atol=5e-3)
    assert runs[1].losses[-1] < runs[1].losses[0] - 1


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)
@pytest.mark.parametrize("stage", ["flash", "hopper"])
def test_in_bfloat16_every_stage_learns_about_the_same(new_model, corpus, stage):
    settings = replace(SETTINGS, dtype="bfloat16")
    runs = [train(new_model(), corpus, settings, attention=each) for each in ("sdpa", stage)]
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=0, atol=0.1)
    assert runs[1].losses[-1] < runs[1].losses[0] - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_interrupted_run_goes_on(new_model, corpus, tmp_path, dtype):
    settings = replace(SETTINGS, dtype=dtype)
    whole = train(new_model(), corpus, settings, attention="flash")
    asked = iter([False] * 11 + [True])
    train(new_model(), corpus, settings, attention="flash", out=tmp_path, should_stop=lambda: next(asked))
    rest = train(new_model(), corpus, settings, attention="flash", out=tmp_path, resume=True)
    assert len(rest.losses) == settings.steps
    torch.testing.assert_close(rest.losses, whole.losses, rtol=0, atol=5e-3)
