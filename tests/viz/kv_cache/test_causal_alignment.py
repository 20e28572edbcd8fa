"""Two alignments of a causal mask: what is drawn as seen is what the functions see."""

import sys
from xml.etree import ElementTree

import pytest
import torch

from llmsys.viz.kv_cache import causal_alignment
from llmsys.viz.kv_cache.causal_alignment import seen

SIZES = [(1, 1), (1, 5), (3, 7), (5, 5), (2, 12), (12, 12), (11, 12), (1, 12)]


def filled(picture):
    """The filled cells of the left and of the right panel, by colour."""
    rects = list(ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}rect"))
    sides = [[r.get("class") for r in rects if (float(r.get("x")) < 380) == left] for left in (True, False)]
    return [{colour: side.count(colour) for colour in ("blue", "orange-soft", "panel")} for side in sides]


@pytest.mark.parametrize("Tq, Tk", SIZES)
def test_cells_are_the_keys_that_each_alignment_lets_be_seen(Tq, Tk, assert_legible, texts):
    bottom_right = torch.ones(Tq, Tk).tril(Tk - Tq).bool()
    top_left = torch.ones(Tq, Tk).tril().bool()
    assert torch.equal(seen(Tq, Tk, align="bottom-right"), bottom_right)
    assert torch.equal(seen(Tq, Tk, align="top-left"), top_left)
    picture = causal_alignment(Tq, Tk)
    assert_legible(picture.svg)
    left, right = filled(picture)
    pairs, hidden = int(bottom_right.sum()), int((bottom_right & ~top_left).sum())
    assert left == {"blue": pairs, "orange-soft": 0, "panel": Tq * Tk - pairs}
    assert right == {"blue": pairs - hidden, "orange-soft": hidden, "panel": Tq * Tk - pairs}
    assert texts(picture).count("×") == hidden
    assert (f"{hidden} pairs of query and key are wrongly hidden" in texts(picture)) == (hidden > 0)


def test_the_alt_text_says_what_each_query_sees():
    said = causal_alignment(2, 4).alt
    assert "causal=True here: query 2 sees keys 0 to 2; query 3 sees keys 0 to 3." in said
    assert "torch's is_causal=True: query 2 sees key 0 only; query 3 sees keys 0 to 1; 4 pairs are wrongly" in said


def test_what_is_drawn_follows_the_library(monkeypatch):
    right = causal_alignment().svg
    module = sys.modules["llmsys.viz.kv_cache.causal_alignment"]
    monkeypatch.setattr(module, "naive_attention", lambda q, k, v, causal: torch.ones(1, 1, q.shape[2], k.shape[2]))
    assert causal_alignment().svg != right


@pytest.mark.parametrize("Tq, Tk", [(0, 3), (4, 3), (3, 13)])
def test_sizes_that_it_cannot_show_are_refused(Tq, Tk):
    with pytest.raises(ValueError, match=f"1 <= Tq <= Tk <= 12, got {Tq} and {Tk}"):
        causal_alignment(Tq, Tk)
