"""Which stage "auto" picks: checked by shape, dtype and device, where there is a GPU and where there is not."""

import inspect

import pytest
import torch

from llmsys.attention import STAGES, auto, get_stage
from llmsys.attention.auto import auto_attention, pick


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU, so that the rules can be read without one."""

    is_cuda = True


def pretend(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(auto, "triton_installed", lambda: True)
    monkeypatch.setattr(auto, "interpreting", lambda: False)


def shapes(B, Hq, Hkv, Tq, Tk, D, Dv=None, dtype=torch.bfloat16):
    sizes = (B, Hq, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, Dv or D)
    return [torch.empty(size, dtype=dtype, device="meta").as_subclass(OnGpu) for size in sizes]


def test_on_a_cpu_torch_s_own_attention_is_picked_and_returned():
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    assert pick(q, k, v) == ("sdpa", "on the cpu, torch's own is the fastest")
    torch.testing.assert_close(auto_attention(q, k, v, causal=True), STAGES["sdpa"](q, k, v, causal=True))
    assert get_stage("auto") is auto_attention and "auto" not in STAGES
    with pytest.raises(ValueError, match="sdpa, auto, or a callable.*Did you mean 'auto'"):
        get_stage("aut0")


@pytest.mark.parametrize(
    ("arguments", "hopper", "other"),
    [
        ((1, 16, 16, 16384, 16384, 128), "hopper", "sdpa"),
        ((1, 32, 32, 16384, 16384, 64), "hopper", "sdpa"),
        ((16, 32, 8, 512, 1024, 128), "flash", "flash"),  # exactly 2^28 scores: not more
        ((16, 32, 8, 513, 1024, 128), "hopper", "flash"),
        ((1, 32, 8, 64, 1024, 128), "flash", "flash"),
        ((16, 16, 16, 4096, 4096, 96), "flash", "sdpa"),
        ((16, 16, 16, 4096, 4096, 128, 64), "flash", "sdpa"),
        ((16, 16, 16, 4096, 4096, 64, 128), "flash", "sdpa"),
        ((16, 16, 16, 4096, 4096, 192), "sdpa", "sdpa"),
        ((16, 16, 16, 4096, 4096, 192, 128), "sdpa", "sdpa"),
        ((16, 16, 16, 4096, 4096, 256), "sdpa", "sdpa"),
        ((16, 32, 8, 1, 8192, 128), "sdpa", "sdpa"),
        ((16, 32, 32, 4096, 4096, 128, 128, torch.float32), "sdpa", "sdpa"),
    ],
)
def test_on_a_gpu_the_stage_that_was_measured_fastest_is_picked(arguments, hopper, other, monkeypatch):
    pretend((9, 0), monkeypatch)
    assert pick(*shapes(*arguments)).name == hopper
    pretend((8, 0), monkeypatch)
    assert pick(*shapes(*arguments)).name == other


def test_without_a_compiler_nothing_of_triton_is_picked(monkeypatch):
    pretend((9, 0), monkeypatch)
    monkeypatch.setattr(auto, "interpreting", lambda: True)
    assert pick(*shapes(1, 16, 16, 16384, 16384, 128)).name == "sdpa"


def test_bad_arguments_are_named():
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="k must have q's head size"):
        inspect.unwrap(auto_attention)(q, q[..., :2], q)  # without the shape checks that the tests add


@pytest.mark.gpu
def test_on_a_gpu_the_picked_stage_runs():
    for Tq, Tk in ((2048, 2048), (64, 512), (1, 512)):
        q, k, v = (torch.randn(8, h, t, 64, device="cuda").bfloat16() for h, t in ((16, Tq), (4, Tk), (4, Tk)))
        torch.testing.assert_close(
            auto_attention(q, k, v, causal=True), STAGES["sdpa"](q, k, v, causal=True), atol=2e-2, rtol=2e-2
        )
