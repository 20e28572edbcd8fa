"""Routers: equal to transformers' on the same weights, to plain loops, safe from traps that others fell into."""

from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.moe.losses import balance_loss, move_bias
from llmsys.moe.router import (
    DEEPSEEK_V3,
    Router,
    RouterConfig,
    Routing,
    check_choice,
    check_logits,
    route_sigmoid,
    route_softmax,
    route_softmax_in_groups,
)
from tests.support.waiting import nothing_waits

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode


def numbers(seed, *shape, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def by_expert(experts, weights):
    """Both in the order of the experts' numbers: which of a token's experts comes first is nobody's promise."""
    order = experts.argsort(dim=-1)
    return experts.gather(1, order), weights.gather(1, order)


def assert_routed_alike(ours: Routing, experts, weights):
    for got, expected in zip(by_expert(ours.experts, ours.weights), by_expert(experts, weights), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


# Against transformers


def theirs(config_class, router_class, module, **settings):
    transformers = pytest.importorskip("transformers")
    import importlib

    config = getattr(transformers, config_class)(hidden_size=24, **settings)
    router = getattr(importlib.import_module(f"transformers.models.{module}"), router_class)(config)
    with torch.no_grad():
        router.weight.copy_(numbers(5, *router.weight.shape))
    return router


def ours_with(router, config: RouterConfig) -> Router:
    ours = Router(24, config)
    with torch.no_grad():
        ours.weight.copy_(router.weight)
    return ours


@pytest.mark.parametrize("k", [1, 2, 7])
def test_mixtrals_router_chooses_and_weighs_alike(k):
    router = theirs(
        "MixtralConfig", "MixtralTopKRouter", "mixtral.modeling_mixtral", num_local_experts=7, num_experts_per_tok=k
    )
    _, weights, experts = router(x := numbers(1, 3, 11, 24))
    assert_routed_alike(ours_with(router, RouterConfig(7, k))(x), experts, weights)


@pytest.mark.parametrize("normalise", [True, False])
def test_qwen3s_router_chooses_and_weighs_alike(normalise):
    router = theirs(
        "Qwen3MoeConfig", "Qwen3MoeTopKRouter", "qwen3_moe.modeling_qwen3_moe", num_experts=16, num_experts_per_tok=4,
        norm_topk_prob=normalise,
    )  # fmt: skip
    _, weights, experts = router(x := numbers(2, 50, 24))
    assert_routed_alike(ours_with(router, RouterConfig(16, 4, normalise=normalise))(x), experts, weights)


@pytest.mark.parametrize("config", [DEEPSEEK_V3, RouterConfig(12, 3, "sigmoid", False, 1.5, True, 4, 2)])
@pytest.mark.parametrize("spread", [0.0, 0.05, 3.0])
def test_deepseek_v3s_router_chooses_and_weighs_alike_whatever_the_bias(config, spread):
    router = theirs(
        "DeepseekV3Config", "DeepseekV3TopkRouter", "deepseek_v3.modeling_deepseek_v3",
        n_routed_experts=config.experts, num_local_experts=config.experts, num_experts_per_tok=config.k,
        n_group=config.groups, topk_group=config.kept_groups, norm_topk_prob=config.normalise,
        routed_scaling_factor=config.scale,
    )  # fmt: skip
    router.e_score_correction_bias.copy_(numbers(3, config.experts, scale=spread) - spread)
    ours = ours_with(router, config)
    ours.bias.copy_(router.e_score_correction_bias)
    _, weights, experts = router(x := numbers(4, 40, 24))
    assert_routed_alike(ours(x), experts, weights)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_balance_loss_is_transformers_divided_by_k(k):
    pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = numbers(6, 33, 8)
    expected = load_balancing_loss_func((logits,), 8, k) / k
    torch.testing.assert_close(balance_loss(route_softmax(logits, k)), expected)


# Against plain loops


def loop_sigmoid(scores, bias, k, groups, kept):
    """One token, by lists: its experts."""
    size = len(scores) // groups
    steered = [s + b for s, b in zip(scores, bias, strict=True)]
    worth = [sum(sorted(steered[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: -worth[g])[:kept]
    inside = [e for e in range(len(scores)) if e // size in best]
    return set(sorted(inside, key=lambda e: -steered[e])[:k])


@settings(max_examples=60)
@given(
    N=st.sampled_from([0, 1, 7]), groups=st.integers(1, 5), size=st.integers(1, 5), data=st.data(),
    seed=st.integers(0, 2**16), low=st.sampled_from([0.0, -2.0, 5.0]), scale=st.sampled_from([1.0, 2.5]),
)  # fmt: skip
def test_a_token_goes_to_the_best_of_the_best_groups_and_is_weighed_without_the_bias(
    N, groups, size, data, seed, low, scale
):
    kept = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, kept * size))
    logits, bias = numbers(seed, N, groups * size), numbers(seed + 1, groups * size) + low
    got = route_sigmoid(logits, k, bias=bias, groups=groups, kept_groups=kept, scale=scale)
    scores = logits.sigmoid()
    assert torch.equal(got.scores, scores) and got.weights.dtype == torch.float32
    for n in range(N):
        expected = loop_sigmoid(scores[n].tolist(), bias.tolist(), k, groups, kept)
        assert set(got.experts[n].tolist()) == expected and len(expected) == k
        of_token = scores[n, got.experts[n]]
        torch.testing.assert_close(got.weights[n], scale * of_token / of_token.sum())
    assert got.loads.tolist() == [int((got.experts == e).sum()) for e in range(groups * size)]


@pytest.mark.parametrize("sequences", [1, 2, 6])
@pytest.mark.parametrize("route", [route_softmax, route_sigmoid])
def test_the_balance_loss_is_the_mean_of_each_sequences_and_its_gradient_that_of_the_scores(sequences, route):
    logits = numbers(7, 12, 5).requires_grad_()
    got = balance_loss(route(logits, 2), sequences=sequences)
    losses = []
    for part in logits.chunk(sequences):
        routing = route(part, 2)
        probability = routing.scores / routing.scores.sum(-1, keepdim=True)
        f = [5 / (2 * len(part)) * float((routing.experts == e).sum()) for e in range(5)]
        losses.append(sum(f[e] * probability[:, e].mean() for e in range(5)))
    expected = sum(losses) / len(losses)
    torch.testing.assert_close(got, expected)
    (mine,), (right,) = (torch.autograd.grad(loss, logits) for loss in (got, expected))
    torch.testing.assert_close(mine, right)
    assert mine.abs().max() > 0


def test_the_balance_loss_is_one_where_all_is_even_and_e_over_k_where_nothing_is():
    even = torch.eye(6) * 50
    assert float(balance_loss(route_softmax(even, 1))) == pytest.approx(1)
    assert float(balance_loss(route_softmax(even[:1].expand(6, 6), 1))) == pytest.approx(6)
    assert float(balance_loss(route_softmax(even, 1), sequences=6)) == pytest.approx(6)  # each has an expert to itself
    assert float(balance_loss(route_softmax(even[:0], 1))) == 0


# The bias


def test_the_bias_goes_up_by_the_rate_where_an_expert_had_too_few_and_stays_where_it_had_its_share():
    bias = torch.zeros(4)
    move_bias(bias, torch.tensor([1, 5, 3, 3]), 0.001)
    torch.testing.assert_close(bias, torch.tensor([0.001, -0.001, 0, 0]))
    move_bias(bias, torch.tensor([1.0, 5.0, 3.0, 3.0]), 0.0)
    torch.testing.assert_close(bias, torch.tensor([0.001, -0.001, 0, 0]))


def test_loads_beyond_what_fp32_counts_are_told_apart():
    loads = torch.tensor([2**24 + 1, 2**24 - 1, 2**24])
    for each in (loads, loads.double()):
        bias = torch.zeros(3)
        move_bias(bias, each, 1.0)
        assert bias.tolist() == [-1, 1, 0]


def test_moving_the_bias_evens_the_loads_of_a_skewed_router_and_reaches_no_gradient():
    torch.manual_seed(0)
    router = Router(16, RouterConfig(8, 2, "sigmoid", bias=True, groups=4, kept_groups=2))
    x = numbers(8, 400, 16) + 1
    with torch.no_grad():
        router.weight.mul_(20)
    before = router(x).loads
    for _ in range(600):
        move_bias(router.bias, router(x).loads, 0.002)
    after = router(x).loads
    assert before.max() > 1.5 * 100 and after.max() < 1.15 * 100, (before, after)
    router(x).weights.sum().backward()
    assert router.weight.grad is not None and not router.bias.requires_grad
    assert set(router.state_dict()) == {"weight", "bias"}


def test_the_bias_stays_in_fp32_where_the_model_is_cast():
    router = Router(4, RouterConfig(4, 1, "sigmoid", bias=True))
    router.bias.fill_(0.7001)
    router.bfloat16()
    assert router.weight.dtype == torch.bfloat16 and router.bias.tolist() == [pytest.approx(0.7001)] * 4
    move_bias(router.bias, torch.tensor([0, 1, 1, 2]), 0.001)
    assert router.bias[0] == pytest.approx(0.7011)
    assert router(torch.ones(2, 4).bfloat16()).weights.dtype == torch.float32
    assert Router(4, RouterConfig(4, 1)).bias is None


# The traps


def test_experts_of_groups_that_are_out_are_never_chosen_though_all_biases_are_negative():
    logits = torch.zeros(1, 8)
    logits[0, 4:] = 1.0
    got = route_sigmoid(logits, 3, bias=torch.full((8,), -10.0), groups=2, kept_groups=1)
    assert set(got.experts[0].tolist()) <= {4, 5, 6, 7}


def test_chosen_experts_whose_scores_are_all_zero_have_weights_of_zero_and_not_nan():
    logits = torch.full((2, 4), -200.0)  # its sigmoid is 0 in fp32
    logits[1, 0] = 0.0
    bias = torch.tensor([-5.0, 1.0, 1.0, 0.0])  # chooses two that score nothing
    got = route_sigmoid(logits.requires_grad_(), 2, bias=bias)
    assert got.weights.tolist() == [[0, 0], [0, 0]]
    (balance_loss(got) + got.weights.sum()).backward()
    assert logits.grad.isfinite().all()


def test_a_group_of_one_expert_counts_as_that_expert():
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    assert set(route_sigmoid(logits, 2, groups=3, kept_groups=2).experts[0].tolist()) == {0, 2}


def test_masked_experts_are_never_chosen_as_long_as_there_are_others():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0]])
    assert route_softmax(logits, 2).experts.tolist() == [[3, 1]]


def test_softmax_in_groups_is_the_definition_and_without_groups_the_plain_router():
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    found = route_softmax_in_groups(logits, 3, groups=4, kept_groups=2, normalise=False, scale=4.0)
    for row, p in enumerate(torch.softmax(logits, -1)):
        best = sorted(range(4), key=lambda group: -p[3 * group : 3 * group + 3].max())[:2]
        inside = [e for e in range(12) if e // 3 in best]
        expected = sorted(inside, key=lambda e: -p[e])[:3]
        assert found.experts[row].tolist() == expected
        torch.testing.assert_close(found.weights[row], 4.0 * p[expected])
    plain, limited = route_softmax(logits, 3), route_softmax_in_groups(logits, 3)
    assert torch.equal(plain.experts, limited.experts)
    torch.testing.assert_close(plain.weights, limited.weights)


def test_a_router_of_softmax_in_groups_routes_so():
    config = RouterConfig(12, 3, normalise=False, scale=4.0, groups=4, kept_groups=2)
    router, x = Router(8, config), torch.randn(20, 8)
    expected = route_softmax_in_groups(
        x @ router.weight.T, 3, groups=4, kept_groups=2, normalise=False, scale=4.0
    )  # fmt: skip
    assert torch.equal(router(x).experts, expected.experts)
    torch.testing.assert_close(router(x).weights, expected.weights)


# Refusals (`unwrap`: as they are outside of tests, where nothing checks shapes before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: route_softmax(torch.zeros(2, 4), 5), "k must be from 1 to the 4 experts that there are, got 5"),
        (lambda: route_sigmoid(torch.zeros(2, 4), 0), "k must be from 1 to the 4"),
        (lambda: unwrap(check_choice)(4, 2.0), "k must be a whole number, got 2.0"),
        (lambda: RouterConfig(4, 2, "sigmoid", groups=True), "groups must be a whole number, got True"),
        (lambda: unwrap(route_softmax)(torch.zeros(3, 2, 4), 2), r"logits must be \(tokens, experts\), got \(3,"),
        (lambda: unwrap(route_sigmoid)(torch.zeros(4), 2), r"logits must be \(tokens, experts\), got \(4,\)"),
        (lambda: route_sigmoid(torch.zeros(2, 4), 1, groups=3), "groups must divide the 4 experts into"),
        (lambda: route_sigmoid(torch.zeros(2, 4), 1, groups=2, kept_groups=3), "kept_groups must be from 1 to the 2"),
        (lambda: route_sigmoid(torch.zeros(2, 4), 3, groups=2), "k must be at most the 2 experts of the 1 groups"),
        (lambda: route_sigmoid(torch.zeros(2, 4), 1, bias=torch.zeros(3)), r"bias must be \(4,\), one for each expert"),
        (lambda: route_sigmoid(torch.zeros(2, 2), 1, bias=torch.tensor([0, float("nan")])), "bias must be finite"),
        (lambda: RouterConfig(4, 1, "softmin"), 'scoring must be "softmax" or "sigmoid"'),
        (lambda: RouterConfig(4, 1, bias=True), 'scoring must be "sigmoid" for a router that has a bias'),
        (lambda: RouterConfig(0, 1), "experts must be at least 1, got 0"),
        (lambda: balance_loss(route_softmax(torch.zeros(5, 4), 1), sequences=2), "sequences must divide the 5 tokens"),
        (lambda: move_bias(torch.zeros(3), torch.zeros(4), 0.1), r"loads must be \(3,\), one for each expert"),
        (lambda: move_bias(torch.zeros(3), torch.zeros(3), -0.1), "rate must be at least 0"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("route", [route_softmax, route_sigmoid])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_cannot_be_compared_are_refused_with_the_token(route, bad):
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="token 1's are not"):
        route(logits, 2)
    with pytest.raises(ValueError, match="token 1's are not"):
        check_logits(logits)


def test_on_a_device_whose_numbers_are_not_at_hand_nothing_is_read():
    x, config = torch.zeros(6, 8, device="meta"), RouterConfig(8, 2, "sigmoid", bias=True, groups=4, kept_groups=2)
    with torch.device("meta"), nothing_waits():
        routing = Router(8, config)(x)
        balance_loss(routing, sequences=2)
        move_bias(torch.zeros(8), routing.loads, 0.1)
        assert Router(8, RouterConfig(8, 2))(x).loads.shape == (8,)
