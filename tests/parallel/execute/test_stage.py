"""What a stage keeps: between F and I its graph, between I and W no more than the matrices need, and then nothing."""

import gc
import weakref

import pytest
import torch

from llmsys.attention import naive_attention
from llmsys.models import Llama
from llmsys.parallel.execute import Cut, PutOff, Stage
from tests.parallel.execute.models import make_microbatches, make_model


class Token:
    """Something that lives as long as the graph does."""


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return dx, None


@pytest.fixture
def watched() -> tuple[Stage, list[weakref.ref]]:
    """A stage of a model, and something in the graph of each of its attentions."""
    seen = []

    def attention(q, k, v, **options):
        token = Token()
        seen.append(weakref.ref(token))
        return naive_attention(Through.apply(q, token), k, v, **options)

    model = make_model(4)
    return Cut.by_cost(model.config, 2, 7).stage(1, dict(model.named_parameters()), attention=attention), seen


def alive(refs: list[weakref.ref]) -> int:
    gc.collect()
    return sum(each() is not None for each in refs)


def test_the_graph_is_kept_until_i_and_what_matrices_need_until_w(watched):
    stage, seen = watched
    (tokens,) = make_microbatches(1)
    stage.forward(0, torch.randn(2, 7, 12, dtype=torch.float64), tokens)
    assert alive(seen) == len(seen) > 0 and stage.unfinished == (0,)
    dx = stage.backward_input(0, None)
    assert dx.shape == (2, 7, 12) and alive(seen) == 0 and stage.unfinished == (0,)
    stage.backward_weight(0)
    assert stage.unfinished == ()
    assert all(weight.grad is not None for weight in stage.weights.values())


def test_at_the_first_stage_nothing_is_done_before_w():
    model = make_model(4)
    (tokens,) = make_microbatches(1)
    first = Cut.by_cost(model.config, 2, 7).stage(0, dict(model.named_parameters()))
    y = first.forward(0, None, tokens)
    assert first.backward_input(0, torch.ones_like(y)) is None
    assert all(weight.grad is None for weight in first.weights.values()) and first.unfinished == (0,)
    first.backward_weight(0)
    assert all(weight.grad is not None for weight in first.weights.values()) and first.unfinished == ()


def test_a_first_stage_takes_no_factory_that_puts_off():
    model, later = make_model(4), PutOff()
    with pytest.raises(ValueError, match="later must be None at the first stage"):
        Stage(Llama(model.config, layers=range(2), linear=later), later)


def test_matrices_that_put_off_what_nobody_takes_are_refused():
    model = make_model(4)
    with pytest.raises(ValueError, match="part must be made without a factory that puts off"):
        Stage(Llama(model.config, layers=range(2), linear=PutOff()))


def test_a_weight_that_two_layers_share_calls_its_hooks_once():
    model, later = make_model(4), PutOff()
    part = Llama(model.config, layers=range(2, 4), linear=later).double().requires_grad_(True)
    part.layers[3].down.weight = part.layers[2].down.weight
    stage, calls = Stage(part, later), []
    part.layers[2].down.weight.register_post_accumulate_grad_hook(calls.append)
    stage.forward(0, torch.randn(2, 7, 12, dtype=torch.float64), make_microbatches(1)[0])
    stage.backward_input(0, None)
    stage.backward_weight(0)
    assert len(calls) == 1


def test_a_w_without_its_i_is_refused(watched):
    stage, _ = watched
    (tokens,) = make_microbatches(1)
    stage.forward(0, torch.randn(2, 7, 12, dtype=torch.float64), tokens)
    with pytest.raises(ValueError, match="W of microbatch 0 must come once, after its I"):
        stage.backward_weight(0)


def test_microbatches_may_be_finished_in_any_order(watched):
    stage, _ = watched
    several = make_microbatches(3)
    x = [torch.randn(2, 7, 12, dtype=torch.float64) for _ in several]
    expected = []
    for m in range(3):
        stage.forward(m, x[m], several[m])
        expected.append(stage.backward_input(m, None))
        stage.backward_weight(m)
    first = {name: weight.grad.clone() for name, weight in stage.weights.items()}
    stage.part.zero_grad()
    for m in (2, 0, 1):
        stage.forward(m, x[m], several[m])
    found = {m: stage.backward_input(m, None) for m in (1, 2, 0)}
    for m in (0, 2, 1):
        stage.backward_weight(m)
    assert all(torch.equal(found[m], expected[m]) for m in range(3))
    for name, weight in stage.weights.items():
        torch.testing.assert_close(weight.grad, first[name], rtol=0, atol=1e-12, msg=name)


def test_without_gradients_nothing_is_kept(watched):
    stage, seen = watched
    with torch.no_grad():
        loss = stage.forward(0, torch.randn(2, 7, 12, dtype=torch.float64), make_microbatches(1)[0])
    assert loss.shape == () and alive(seen) == 0 and stage.unfinished == ()


def test_what_a_failed_step_left_can_be_dropped(watched):
    stage, seen = watched
    (tokens,) = make_microbatches(1)
    for m in range(2):
        stage.forward(m, torch.randn(2, 7, 12, dtype=torch.float64), tokens)
    stage.backward_input(1, None)
    stage.forget()
    assert stage.unfinished == () and alive(seen) == 0


def test_the_tensor_between_stages_is_what_leaves_one(watched):
    stage, _ = watched
    model = make_model(4)
    first = Cut.by_cost(model.config, 2, 7).stage(0, dict(model.named_parameters()))
    for B, T in ((1, 1), (3, 5)):
        tokens = make_microbatches(1, B, T)[0]
        y, buffer = first.forward(0, None, tokens), stage.boundary(tokens)
        assert (y.shape, y.dtype, y.device) == (buffer.shape, buffer.dtype, buffer.device)
        assert not y.requires_grad
