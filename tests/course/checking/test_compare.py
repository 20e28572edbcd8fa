"""Plain data: copies share nothing, comparisons believe nothing, and the first difference is told."""

import math
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.course.checking.compare import NotPlain, compare, copy_arguments, plain, show, show_call, unchanged


class Forged(torch.Tensor):
    """A tensor that says yes to everything."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True


class Pair(NamedTuple):
    m: torch.Tensor
    l: torch.Tensor


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
    st.integers(0, 99),
)
values = st.recursive(
    leaves | tensors,
    lambda inner: st.lists(inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_a_plain_copy_is_the_same_and_shares_nothing(value):
    copy = plain(value)
    assert compare(copy, value) is None and unchanged(value, copy) and unchanged(value, copy_arguments(value))
    for x in (copy, copy_arguments(value)):
        if isinstance(x, torch.Tensor) and x.numel():
            assert x.data_ptr() != value.data_ptr()
    show(value), show_call("f", (value,), {"k": value})  # whatever it is, it can be shown


@pytest.mark.parametrize(
    "value, reason",
    [
        (torch.zeros(2).as_subclass(Forged), "not a subclass"),
        (torch.nn.Parameter(torch.zeros(2)), "not a subclass"),
        ((1, [torch.zeros(2).as_subclass(Forged)]), r"\[1\]\[0\] is of type .*Forged"),
        (np.float32(1.0), "not NumPy's"),
        ((x for x in [1]), "not a generator"),
        (type("Yes", (int,), {"__eq__": lambda self, other: True})(3), "is of type"),
        (torch.eye(2).to_sparse(), "dense"),
        (torch.empty(2, device="meta"), "dense"),
        ({1, 2}, "is of type set"),
    ],
)
def test_data_that_is_not_plain_is_refused_with_a_reason(value, reason):
    with pytest.raises(NotPlain, match=reason):
        plain(value)


def test_a_named_tuple_is_a_tuple():
    got = plain(Pair(torch.ones(2), torch.zeros(2)))
    assert type(got) is tuple and len(got) == 2


@pytest.mark.parametrize(
    "got, expected, message",
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"the shape is \(2, 3\), expected \(3, 2\)"),
        (torch.zeros(2).double(), torch.zeros(2), "the dtype is float64, expected float32"),
        (torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), r"first at \[1, 1\]: 9, "),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "1 of them NaN"),
        (torch.tensor([1.0, math.inf]), torch.ones(2), r"first at \[1\]: inf, expected 1"),
        (torch.tensor(2), torch.tensor(3), "^2, expected 3$"),
        ((torch.ones(1), torch.ones(1)), (torch.ones(1), torch.zeros(1)), r"^result\[1\]: first at \[0\]"),
        (torch.tensor(3), 3, "expected the int 3, got a int64 tensor"),
        (3, torch.tensor(3), r"expected a tensor of shape \(\), got the int 3"),
        (None, torch.ones(1), "is a `return` missing"),
        ((1, 2), (1, 2, 3), "expected 3 values, got 2"),
        (True, 1, "expected the int 1, got the bool True"),
        ({"a": 1}, {"b": 1}, "expected a dict with the keys"),
        (1.0, 1.5, "1, expected 1.5"),
        ("a", "b", "'a', expected 'b'"),
    ],
)
def test_the_first_difference_is_told(got, expected, message):
    found = compare(got, expected)
    assert found is not None and re.search(message, found.message), found


def test_infinities_and_nan_are_equal_to_themselves_only():
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    assert compare(x, x.clone()) is None
    for i, other in ((0, -math.inf), (0, 1e30), (1, math.inf), (2, 0.0), (3, math.inf), (3, math.nan)):
        y = x.clone()
        y[i] = other
        assert compare(y, x) is not None and compare(x, y) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tolerance_is_room_for_rounding_and_not_for_a_mistake(dtype):
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype) + 0.5
    assert compare(x * (1 + torch.finfo(dtype).eps), x) is None
    assert compare(x * (1 + 60 * torch.finfo(dtype).eps) + 0.05, x) is not None
    assert compare(x.long() + 1, x.long()) is not None  # whole numbers have none


@given(tensors)
def test_without_values_only_types_shapes_and_dtypes_are_compared(x):
    assert compare(torch.zeros_like(x), x, values=False) is None


def test_copies_of_arguments_keep_strides_and_offsets():
    wide = torch.arange(24.0).view(4, 6)
    for x in (wide[:, 1:4], wide.T, wide[::2, ::3], wide[0].expand(3, 6), wide[1]):
        copy = copy_arguments(x)
        assert torch.equal(copy, x) and copy.stride() == x.stride() and copy.storage_offset() == x.storage_offset()
        assert copy.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_a_change_in_place_is_seen():
    before = (torch.tensor([1.0, math.nan]), [torch.zeros(2)], {"k": 1})
    after = copy_arguments(before)
    assert unchanged(before, after)
    after[1][0][1] = 1
    assert not unchanged(before, after)
    x = torch.zeros(2, 3)
    y = copy_arguments(x)
    y.t_()
    assert not unchanged(x, y)


def test_long_values_are_shown_short():
    assert len(show(torch.zeros(1000, 1000))) < 500 and "(1000, 1000) float32" in show(torch.zeros(1000, 1000))
    assert len(show("x" * 10_000)) < 500
    assert show_call("merge", ((torch.zeros(2), torch.zeros(2)),), {"tile": 4}) == (
        "merge(((2,) float32, (2,) float32), tile=4)"
    )
    assert "not contiguous" in show_call("f", (torch.zeros(2, 3).T,), {})
    assert show_call("backward", (1,), {"scale": 2.0, "only": "dq"}) == "dq of backward(1, scale=2.0)"


def test_a_call_tells_the_learners_arguments_from_those_of_the_check():
    options = {"block": 16, "columns": 8, "causal": True, "only": "dk"}
    shown = show_call("kernel", (torch.zeros(3, 24),), options, {"x_ptr", "BLOCK", "causal"})
    assert shown == "dk of kernel((3, 24) float32, BLOCK=16, causal=True); for the check: columns=8"
    assert show_call("fill", (), {"p": 4, "m": 8}, {"order", "rank"}) == "fill(…); for the check: p=4, m=8"
    assert show_call("f", (1,), {"a": 2}, {"x", "a"}) == "f(1, a=2)" == show_call("f", (1,), {"a": 2}, frozenset())
