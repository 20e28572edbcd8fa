"""Online softmax: the merge is a commutative monoid, and everything built on it is softmax."""

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.online import Partial, identity, merge, online_softmax, safe_softmax, summarize, tiles
from llmsys.hardware.meters import largest_allocation, reads_of

LOGIT = st.one_of(st.floats(-1e4, 1e4, width=32), st.just(-math.inf))
ROW = st.lists(LOGIT, min_size=0, max_size=40).map(torch.tensor)
SOFTMAXES = pytest.mark.parametrize("softmax", [safe_softmax, online_softmax])


def close(a: Partial, b: Partial):
    torch.testing.assert_close(tuple(a), tuple(b), atol=1e-6, rtol=2e-6)


@given(ROW, ROW)
def test_merging_two_pieces_summarises_both(a, b):
    close(merge(summarize(a), summarize(b)), summarize(torch.cat([a, b])))


@given(ROW, ROW, ROW)
def test_merge_is_associative_and_commutative(a, b, c):
    a, b, c = map(summarize, (a, b, c))
    close(merge(merge(a, b), c), merge(a, merge(b, c)))
    close(merge(a, b), merge(b, a))


@given(ROW)
def test_the_identity_changes_nothing_not_even_itself(a):
    a = summarize(a)
    for left, right in ((a, identity()), (identity(), a)):
        merged = merge(left, right)
        assert torch.equal(merged.m, a.m) and torch.equal(merged.l, a.l)


@settings(deadline=None)
@given(st.lists(LOGIT, min_size=1, max_size=40).map(torch.tensor), st.integers(1, 9), st.randoms())
def test_any_tree_in_any_order_gives_the_same_summary(x, tile, rng):
    parts = [summarize(part) for part in tiles(x, tile)]
    while len(parts) > 1:
        parts.append(merge(parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))))
    close(parts[0], summarize(x))


@SOFTMAXES
@settings(deadline=None)
@given(x=st.lists(LOGIT, min_size=1, max_size=40), tile=st.integers(1, 45))
def test_softmax_for_any_row_and_any_tile(softmax, x, tile):
    x = torch.tensor(x)
    expected = torch.softmax(x.double(), -1).nan_to_num(0)  # torch's NaN for a row of -inf is a zero row here
    torch.testing.assert_close(softmax(x, tile).double(), expected, atol=1e-6, rtol=1e-5)


@SOFTMAXES
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 1), (2, 3, 17)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_softmax_of_any_shape_and_dtype(softmax, shape, dtype):
    x = torch.randn(shape).to(dtype)
    y = softmax(x, 4)
    assert y.shape == x.shape and y.dtype == dtype
    torch.testing.assert_close(y, torch.softmax(x.double(), -1).to(dtype))


@pytest.mark.parametrize(("softmax", "passes"), [(safe_softmax, 3), (online_softmax, 2)])
@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_three_passes_become_two_and_no_row_is_ever_held(softmax, passes, tile):
    x = torch.randn(2, 640)
    with reads_of(x) as reads, largest_allocation() as allocated:
        y = softmax(x, tile)
    assert reads.passes == passes
    assert allocated.shape == y.shape  # the result itself is the largest thing made


@SOFTMAXES
def test_a_tile_of_nothing_is_refused(softmax):
    with pytest.raises(ValueError, match="tile must be at least 1"):
        softmax(torch.randn(3), 0)


def test_folding_one_element_at_a_time_is_the_papers_algorithm():
    x = torch.randn(50) * 30
    m, d = -math.inf, 0.0
    for value in x.double().tolist():  # Milakov and Gimelshein, algorithm 3, lines 1-6
        m_old, m = m, max(m, value)
        d = d * math.exp(m_old - m) + math.exp(value - m)
    folded = reduce(merge, map(summarize, tiles(x.double(), 1)))
    assert folded.m.item() == m and folded.l.item() == pytest.approx(d)
