"""The stepper of lesson 14: loads even out by a bias and by a loss, each in its own way; frames are what is routed."""

import pytest
import torch

from llmsys.moe import RouterConfig, route_sigmoid
from llmsys.viz.mixture_of_experts import stepper
from llmsys.viz.mixture_of_experts.stepper import LOSSES, RATES
from llmsys.viz.mixture_of_experts.stream import stream

C, E, S, T = 16, 12, 4, 32
CONFIG = RouterConfig(E, 3, "sigmoid", bias=True)


@pytest.fixture(scope="module")
def given():
    """Tokens that have a direction in common, so that some experts are everybody's favourites."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(E, C, generator=generator)
    shift = 0.7 * torch.randn(C, generator=generator)
    x = [shift + torch.randn(S, T, C, generator=generator) for _ in range(30)]
    return [(f"batch {n}", each) for n, each in enumerate(x)], weight


def test_a_frames_loads_are_those_of_its_batch(given):
    batches, weight = given
    frames = stream(batches, weight, CONFIG)
    for (text, x), frame in zip(batches, frames, strict=True):
        loads = route_sigmoid(x.flatten(0, 1) @ weight.T, 3).loads
        assert frame.text == text and frame.loads == pytest.approx((loads * E / (S * T * 3)).tolist())
        of_one = route_sigmoid(x[0] @ weight.T, 3).loads
        assert frame.of_one == pytest.approx((of_one * E / (T * 3)).tolist())
        assert frame.busiest[-1] == max(frame.loads) and frame.own_choice == 1 and frame.moved == 0


def test_a_bias_evens_loads_and_leaves_the_scores_as_they_are(given):
    plain, biased = stream(*given, CONFIG)[-1], stream(*given, CONFIG, rate=0.02)[-1]
    assert biased.busiest[-1] < 0.8 * plain.busiest[-1]
    assert biased.moved == 0 and biased.own_choice < 1 and any(biased.bias)


@pytest.mark.parametrize("loss", ["batch", "sequence"])
def test_a_loss_evens_loads_and_moves_the_scores(given, loss):
    plain, pulled = stream(*given, CONFIG)[-1], stream(*given, CONFIG, loss=loss)[-1]
    assert pulled.busiest[-1] < 0.8 * plain.busiest[-1]
    assert pulled.moved > 0 and pulled.own_choice == 1 and not any(pulled.bias)


def test_the_routers_own_matrix_and_what_goes_by_stay_as_they_are(given):
    batches, weight = given
    before = weight.clone(), [x.clone() for _, x in batches]
    stream(batches, weight, CONFIG, rate=0.02, loss="sequence")
    assert torch.equal(weight, before[0]) and not weight.requires_grad
    assert all(torch.equal(x, y) for (_, x), y in zip(batches, before[1], strict=True))


def test_the_readers_own_functions_are_called(given):
    called = []
    shown = stepper(
        *given, CONFIG, move=lambda bias, loads, rate: called.append("move"),
        balance=lambda routing, *, sequences: called.append(sequences) or routing.scores.sum() * 0,
    )  # fmt: skip
    shown.set(rate=0.01, loss="sequence")
    assert "move" in called and S in called


def test_every_setting_can_be_drawn_and_read(given, assert_legible):
    shown = stepper(*given, CONFIG)
    for rate in RATES.values():
        for loss in LOSSES.values():
            shown.set(rate=rate, loss=loss)
            for n in (0, len(shown.frames) - 1):
                assert_legible(shown.svg(n))
