"""A matrix whose backward pass is in two halves: together they are autograd's own, and so are the hooks' calls."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmsys.models import Llama
from llmsys.models.modules import LinearFactory
from llmsys.parallel.execute import PutOff, split_backward
from tests.parallel.execute.models import make_microbatches, make_model, unsplit

sizes = st.integers(1, 9)


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(sizes, min_size=0, max_size=3), n=sizes, m=sizes, seed=st.integers(0, 10**6))
def test_both_halves_are_autograds_gradients(rows, n, m, seed):
    later = PutOff()
    matrix = later(n, m, name="any").double()
    random = torch.Generator().manual_seed(seed)
    rows = rows or [1]
    x, dy = (torch.randn(*rows, size, dtype=torch.float64, generator=random) for size in (n, m))
    plain_x, weight = x.clone().requires_grad_(), matrix.weight.detach().clone().requires_grad_()
    F.linear(plain_x, weight).backward(dy)

    x.requires_grad_()
    y = matrix(x)
    torch.testing.assert_close(y, F.linear(x, weight), rtol=0, atol=0)
    y.backward(dy)
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=0, atol=1e-13)
    assert matrix.weight.grad is None
    (waiting,) = later.take()
    waiting.finish()
    torch.testing.assert_close(matrix.weight.grad, weight.grad, rtol=0, atol=1e-13)
    assert later.take() == []


def test_it_is_a_factory_of_matrices():
    assert isinstance(PutOff(), LinearFactory)


def test_another_split_takes_the_place_of_the_librarys():
    """Whoever gives a function of one's own sees each matrix's dy, x and weight once, and W calls what it returned."""
    seen = []

    def noted(dy, x, weight):
        seen.append((dy.shape, x.shape, weight.shape))
        dx, later = split_backward(dy, x, weight)
        return dx, lambda: 2 * later()

    later = PutOff(noted)
    matrix = later(3, 2)
    x = torch.randn(4, 5, 3, requires_grad=True)
    matrix(x).sum().backward()
    later.take()[0].finish()
    assert seen == [((4, 5, 2), (4, 5, 3), (2, 3))]
    torch.testing.assert_close(matrix.weight.grad, 2 * x.detach().sum((0, 1)).expand(2, 3))


def test_an_input_without_a_gradient_leaves_the_weight_its_own():
    later = PutOff()
    matrix = later(3, 2)
    x = torch.randn(5, 3)
    matrix(x).sum().backward()
    later.take()[0].finish()
    torch.testing.assert_close(matrix.weight.grad, x.sum(0).expand(2, 3))


@pytest.mark.parametrize("frozen", ["by hand", "no_grad"])
def test_nothing_is_put_off_where_no_gradient_is_wanted(frozen):
    later = PutOff()
    matrix = later(3, 2).requires_grad_(frozen != "by hand")
    x = torch.randn(5, 3, requires_grad=True)
    with torch.set_grad_enabled(frozen != "no_grad"):
        y = matrix(x)
    if frozen == "by hand":
        y.sum().backward()
        assert x.grad is not None
    assert later.take() == [] and matrix.weight.grad is None


def test_a_whole_models_gradients_are_bit_for_bit_those_without_a_split():
    model = make_model(3)
    microbatches = make_microbatches(3)
    _, expected = unsplit(model, microbatches)
    later = PutOff()
    split = Llama(model.config, linear=later).double()
    split.load_state_dict(model.state_dict())
    put_off = []
    for tokens in microbatches:
        logits = split(tokens[:, :-1])
        (F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()) / 3).backward()
        put_off.append(later.take())
    matrices = {id(module.weight) for module in split.modules() if isinstance(module, nn.Linear)}
    assert {weight.grad is None for weight in split.parameters() if id(weight) in matrices} == {True}
    assert all(weight.grad is not None for weight in split.parameters() if id(weight) not in matrices)
    for each in (each for several in put_off for each in several):
        each.finish()
    assert all(torch.equal(weight.grad, expected[name]) for name, weight in split.named_parameters())


def test_hooks_of_weights_see_the_whole_gradient_and_may_change_it():
    later = PutOff()
    matrix = later(3, 2)
    seen = []
    matrix.weight.register_hook(lambda gradient: (seen.append(gradient.clone()), 2 * gradient)[1])
    matrix.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    x = torch.randn(4, 3, requires_grad=True)
    matrix(x).sum().backward()
    assert seen == []
    later.take()[0].finish()
    expected = x.detach().sum(0).expand(2, 3)
    torch.testing.assert_close(seen, [expected, 2 * expected])
