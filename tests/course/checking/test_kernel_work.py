"""Whether a kernel did the work that the library's does: which work that is, and in which calls it is missed."""

import pytest
import torch

from llmsys.course.checking.answer import Call
from llmsys.course.checking.checks import get_check
from llmsys.course.checking.kernel_work import idle, work_of
from llmsys.course.checking.runner import Raised, Run
from llmsys.hardware.tier import triton_installed

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
X = torch.ones(3)


def call(*args, **fields):
    return Call(args, {}, Run(value=X, **{"watched": True, **fields}))


def test_the_work_is_what_the_librarys_kernel_has_in_its_text():
    assert work_of(get_check("02.softmax_kernel").reference) == {"load", "store"}
    assert work_of(get_check("04.causal").reference) == {"load", "store", "dot"}
    assert work_of(torch.softmax) == work_of(None) == work_of("llmsys.attention:nothing") == frozenset()


@pytest.mark.parametrize(
    ("run", "missing"),
    [
        (call(X, operations={"load": 1, "store": 2, "dot": 1}), None),
        (call(X, operations={"load": 1, "store": 2}), None),  # as where no query sees a key
        (call(X, operations={"store": 2, "dot": 0}), "tl.load"),
        (call(X, operations={"load": 2, "dot": 1}), "tl.store"),
        (call(X, operations={}, watched=False), None),  # compiled: nobody counts
        (call(X, operations={}, error=Raised("ValueError", "no")), None),
        (call(X, X[:0], operations={}), None),  # there is nothing to compute
    ],
)
def test_a_call_that_leaves_work_out_is_found(run, missing):
    found = idle(frozenset({"load", "store", "dot"}), [call(X, operations=dict(load=1, store=1, dot=1)), run], str)
    assert (found is None) == (missing is None)
    if missing:
        assert found[0] is run and f"no {missing} was seen" in found[1].message


def test_products_are_missed_where_no_call_makes_any():
    calls = [call(X, operations={"load": 1, "store": 1})] * 2
    assert "no tl.dot was seen" in idle(frozenset({"load", "store", "dot"}), calls, str)[1].message
    assert idle(frozenset({"load", "store"}), calls, str) is None
