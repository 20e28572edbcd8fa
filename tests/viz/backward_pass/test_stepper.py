"""The stepper of lesson 05 takes the walk that the library's backward pass takes."""

import itertools

import pytest
import torch

from llmsys.attention.backward import backward_tiled
from llmsys.hardware.meters import Observer
from llmsys.viz.backward_pass import stepper
from llmsys.viz.backward_pass.stepper import LENGTHS, D, steps

CASES = list(itertools.product([False, True], ["16 × 16", "8 × 16", "16 × 24"], LENGTHS))


class Tiles(Observer):
    """The shapes of P, tile after tile: only P is made with an exponential."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator._schema.name == "aten::exp":
            self.shapes.append(tuple(result.shape[2:]))
        return result


@pytest.mark.parametrize("causal, tile, length", CASES)
def test_the_pairs_of_tiles_are_those_of_the_library_in_its_order(causal, tile, length):
    frames = steps(causal, tile, length)
    (Tq, Tk), (block_q, block_k) = LENGTHS[length], (int(n) for n in tile.split(" × "))
    q, k, v, o, do = (torch.zeros(1, 1, T, D) for T in (Tq, Tk, Tk, Tq, Tq))
    with Tiles() as library:
        backward_tiled(q, k, v, o, torch.zeros(1, 1, Tq), do, causal=causal, block_q=block_q, block_k=block_k)
    assert [(step.rows, step.keys) for step in frames if step.kind == "weights"] == library.shapes
    assert frames[-1].stored == set(range(0, Tk, block_k))
    assert {(step.i, step.j) for step in frames if step.kind == "sums"} == frames[-1].done


@pytest.mark.parametrize("causal, tile, length", CASES)
def test_every_frame_is_legible_and_says_what_happens(causal, tile, length, assert_legible):
    shown = stepper()
    shown.set(causal=causal, tile=tile, length=length)
    for index in range(len(shown.frames)):
        assert_legible(shown.svg(index))
    assert "store their dK and dV" in shown.html(len(shown.frames) - 1)


def test_every_gradient_is_complete_at_the_end(texts):
    shown = stepper(causal=True)
    shares = [text for text in texts(shown.svg(len(shown.frames) - 1)) if " of " in text]
    assert shares and all(text.split()[0] == text.split()[2] for text in shares if text.split()[2].isdigit())
    assert "P ∘ (dP − δ)" in shown.static_html()
