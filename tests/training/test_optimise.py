"""AdamW against its equations in fp64, what fp32 masters save that bf16 loses, clipping, and the schedule."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmsys.training import Optimiser, cosine_schedule


class Small(nn.Module):
    """A matrix and a norm's scales."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(5, 7))
        self.scales = nn.Parameter(torch.ones(7))

    def forward(self, x):
        return ((x.to(self.matrix) @ self.matrix.mT) * self.scales[:5]).square().mean()


def gradients(model, optimiser, seed=0, parts=1):
    random = torch.Generator().manual_seed(seed)
    for _ in range(parts):
        model(torch.randn(3, 7, generator=random)).backward()
        optimiser.gather()
    return {name: master.grad.clone() for name, master in optimiser.masters.items()}


def test_adamw_follows_its_equations():
    model = Small()
    optimiser = Optimiser(model, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    w = {name: weight.detach().double().clone() for name, weight in model.named_parameters()}
    m = {name: torch.zeros_like(weight) for name, weight in w.items()}
    v = copy.deepcopy(m)
    for t in range(1, 6):
        rate = 0.1 / t
        for name, g in gradients(model, optimiser, seed=t).items():
            m[name] = 0.8 * m[name] + 0.2 * g.double()
            v[name] = 0.9 * v[name] + 0.1 * g.double() ** 2
            step = m[name] / (1 - 0.8**t) / ((v[name] / (1 - 0.9**t)).sqrt() + 1e-6)
            decay = 0.3 if name == "matrix" else 0  # a norm's scales do not decay
            w[name] -= rate * (step + decay * w[name])
        optimiser.step(rate, clip=None)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.double(), w[name], rtol=1e-5, atol=1e-6)


def test_masters_keep_what_bfloat16_would_lose():
    weight = nn.Parameter(torch.ones(4))
    model = nn.ParameterList([weight])
    optimiser = Optimiser(model, dtype=torch.bfloat16, weight_decay=0.0)
    assert weight.dtype == torch.bfloat16
    alone = torch.ones(4, dtype=torch.bfloat16)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimiser.gather()
        optimiser.step(1e-3)
        alone -= 1e-3
    assert torch.equal(alone, torch.ones(4, dtype=torch.bfloat16))  # 0.999 rounds to 1, a hundred times
    (master,) = optimiser.masters.values()
    torch.testing.assert_close(master, torch.full((4,), 0.9), rtol=0, atol=1e-4)
    assert torch.equal(weight, master.bfloat16())


def test_masters_are_made_before_the_model_is_rounded():
    model = Small()
    exact = model.matrix.detach().clone()
    optimiser = Optimiser(model, dtype=torch.bfloat16)
    assert torch.equal(optimiser.masters["matrix"], exact)
    assert torch.equal(model.matrix, exact.bfloat16()) and not torch.equal(model.matrix.float(), exact)


def test_gradients_add_up_in_fp32():
    model = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    optimiser = Optimiser(model, dtype=torch.bfloat16)
    for _ in range(300):  # in bf16 the sum would stop at 256
        model[0].grad = torch.ones_like(model[0])
        optimiser.gather()
    assert float(optimiser.masters["0"].grad) == 300 and model[0].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_gradient_is_shortened(dtype):
    model = Small()
    optimiser = Optimiser(model, dtype=dtype)
    found = gradients(model, optimiser, parts=2)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in found.values()))
    seen = {}
    optimiser.adamw.register_step_pre_hook(
        lambda *_: seen.update({name: w.grad.clone() for name, w in optimiser.masters.items()})
    )
    assert optimiser.step(0.1, clip=norm / 4) == pytest.approx(norm, rel=1e-5)
    for name, g in found.items():
        torch.testing.assert_close(seen[name], g / 4, rtol=1e-4, atol=1e-7)
    assert all(weight.grad is None for weight in model.parameters())
    found = gradients(model, optimiser)
    optimiser.step(0.1, clip=1e6)
    assert all(torch.equal(seen[name], g) for name, g in found.items())


def test_a_gradient_that_is_no_number_moves_nothing():
    model = Small()
    optimiser = Optimiser(model)
    gradients(model, optimiser)
    before = copy.deepcopy(model.state_dict())
    model.matrix.grad[0, 0] = float("nan")
    assert math.isnan(optimiser.step(0.1))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_weight_without_a_gradient_is_named():
    model = Small()
    optimiser = Optimiser(model)
    model.matrix.sum().backward()
    with pytest.raises(ValueError, match="scales got no gradient.*backward"):
        optimiser.gather()
    with pytest.raises(ValueError, match="requires_grad_"):
        Optimiser(model.requires_grad_(False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_one_goes_on_to_the_bit(dtype):
    def go(model, optimiser, steps):
        for t in steps:
            gradients(model, optimiser, seed=t)
            optimiser.step(0.1)

    whole = Small()
    optimiser = Optimiser(whole, dtype=dtype)
    assert optimiser.state() == {}
    go(whole, optimiser, range(3))
    masters = {name: master.detach().clone() for name, master in optimiser.masters.items()}
    state = copy.deepcopy(optimiser.state())
    assert set(state) == {"m.matrix", "v.matrix", "m.scales", "v.scales"}
    go(whole, optimiser, range(3, 6))

    resumed = Small()
    optimiser = Optimiser(resumed, dtype=dtype)
    optimiser.restore(masters, state, 3)
    go(resumed, optimiser, range(3, 6))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@given(steps=st.integers(1, 60), warmup=st.integers(0, 60), final=st.floats(0, 1))
def test_the_rate_rises_then_falls(steps, warmup, final):
    warmup = min(warmup, steps)
    rates = [cosine_schedule(i, steps=steps, warmup=warmup, peak=1.0, final=final) for i in range(steps)]
    up, down = rates[:warmup], rates[warmup:]
    assert up == sorted(up) and down == sorted(down, reverse=True)
    assert all(0 < rate <= 1 for rate in rates) and max(rates) == 1
    if down:
        assert down[-1] >= final and cosine_schedule(steps, steps=steps, warmup=warmup, peak=1.0, final=final) == final
    if len(down) % 2 == 1:
        return
    if down:  # half of the way down at half of the time
        assert down[len(down) // 2] == pytest.approx((1 + final) / 2)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup must be from 0 to steps = 5, got 6"):
        cosine_schedule(0, steps=5, warmup=6, peak=1.0)
