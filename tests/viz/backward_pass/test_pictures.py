"""Lesson 05's pictures: the stepper's walk is the one that the library's backward pass takes."""

import itertools
from xml.etree import ElementTree

import pytest
import torch

from llmsys.attention.backward import backward_tiled
from llmsys.hardware.meters import Observer
from llmsys.viz import backward_overview, backward_stepper
from llmsys.viz.backward_pass.stepper import LENGTHS, D, steps

SVG = "{http://www.w3.org/2000/svg}"
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


def texts(markup):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(markup).iter(f"{SVG}text")]


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
    stepper = backward_stepper()
    stepper.set(causal=causal, tile=tile, length=length)
    for index in range(len(stepper.frames)):
        assert_legible(stepper.svg(index))
    assert "store their dK and dV" in stepper.html(len(stepper.frames) - 1)


def test_every_gradient_is_complete_at_the_end():
    stepper = backward_stepper(causal=True)
    shares = [text for text in texts(stepper.svg(len(stepper.frames) - 1)) if " of " in text]
    assert shares and all(text.split()[0] == text.split()[2] for text in shares if text.split()[2].isdigit())
    assert "P ∘ (dP − δ)" in stepper.static_html()


def test_the_overview_says_what_is_kept(assert_legible):
    picture = backward_overview()
    assert_legible(picture.svg)
    assert {"P", "o", "lse", "four products", "five products"} <= set(texts(picture.svg))
    products = [text for text in texts(picture.svg) if " = " in text and ("d" in text[:2] or "again" in text)]
    assert len(products) == 4 + 5
