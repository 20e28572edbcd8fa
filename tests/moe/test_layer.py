"""The whole layer: equal to transformers' blocks, the same when its experts are in two places, trained with a hook."""

import importlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.moe import Dispatch, MixtureOfExperts, RouterConfig, balance_loss, route_sigmoid
from llmsys.moe.experts import experts_loop
from tests.support.waiting import nothing_waits

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode
FORMS = ["loop", "torch", *(["triton"] if triton_installed() and not torch.cuda.is_available() else [])]
SIGMOID = RouterConfig(8, 3, "sigmoid", scale=2.5, bias=True, groups=4, kept_groups=2)


def numbers(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    for i, weight in enumerate([*module.parameters(), *module.buffers()]):
        weight.copy_(numbers(i, *weight.shape) / weight.shape[-1] ** 0.5)
    return module


# Against transformers


BLOCKS = {
    "mixtral": ("MixtralConfig", "MixtralSparseMoeBlock", dict(num_local_experts=8, intermediate_size=20)),
    "qwen3_moe": (
        "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", dict(num_experts=8, moe_intermediate_size=20, norm_topk_prob=True)
    ),
    "deepseek_v3": (
        "DeepseekV3Config", "DeepseekV3MoE",
        dict(n_routed_experts=8, num_local_experts=8, moe_intermediate_size=20, n_shared_experts=2, n_group=4,
             topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", BLOCKS)
def test_output_and_gradients_are_those_of_transformers_block_with_the_same_weights(family, form):
    transformers = pytest.importorskip("transformers")
    config_class, block, options = BLOCKS[family]
    config = getattr(transformers, config_class)(hidden_size=24, num_experts_per_tok=3, **options)
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    theirs = fill(getattr(module, block)(config))
    sigmoid = family == "deepseek_v3"
    ours = MixtureOfExperts(24, 20, SIGMOID if sigmoid else RouterConfig(8, 3), shared_size=40 * sigmoid, form=form)
    with torch.no_grad():
        ours.router.weight.copy_(theirs.gate.weight)
        ours.experts.gate_up.copy_(theirs.experts.gate_up_proj)
        ours.experts.down.copy_(theirs.experts.down_proj)
        if sigmoid:
            ours.router.bias.copy_(theirs.gate.e_score_correction_bias)
            shared = theirs.shared_experts
            ours.shared.gate_up.weight.copy_(torch.cat((shared.gate_proj.weight, shared.up_proj.weight)))
            ours.shared.down.weight.copy_(shared.down_proj.weight)
    x, same = (numbers(50, 2, 9, 24).requires_grad_() for _ in range(2))
    (got, routing), right = ours(x), theirs(same)
    right = right[0] if isinstance(right, tuple) else right
    torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-4)
    assert routing.experts.shape == (18, 3) and int(routing.loads.sum()) == 18 * 3
    got.square().sum().backward(), right.square().sum().backward()
    for a, b in (
        (x, same), (ours.router.weight, theirs.gate.weight), (ours.experts.gate_up, theirs.experts.gate_up_proj),
        (ours.experts.down, theirs.experts.down_proj),
    ):  # fmt: skip
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)


# Dispatch


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_experts_in_two_places_give_what_they_give_in_one(cut):
    """What expert parallelism does, without ranks: each place runs its own experts, and the sums are added."""
    whole = fill(MixtureOfExperts(12, 10, SIGMOID, shared_size=6))

    def part(local):
        experts = MixtureOfExperts(12, 10, SIGMOID, local=local, dispatch=lambda x, *_: x).experts
        with torch.no_grad():
            for name, weight in experts.named_parameters():
                weight.copy_(getattr(whole.experts, name)[local.start : local.stop])
        return local, experts

    places = [part(range(cut)), part(range(cut, 8))]

    def both(x, experts, weights, run):
        assert run is here.experts
        out = 0
        for local, of_place in places:
            mine = (experts >= local.start) & (experts < local.stop)
            out = out + of_place(x, torch.where(mine, experts - local.start, -1), weights)
        return out

    assert isinstance(both, Dispatch)
    here = MixtureOfExperts(12, 10, SIGMOID, shared_size=6, local=range(cut), dispatch=both)
    assert here.experts.gate_up.shape == (cut, 20, 12)
    here.load_state_dict({n: w for n, w in whole.state_dict().items() if "experts." not in n}, strict=False)
    x, same = (numbers(3, 11, 12).requires_grad_() for _ in range(2))
    (got, _), (right, _) = here(x), whole(same)
    torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-4)
    got.square().sum().backward(), right.square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(here.router.weight.grad, whole.router.weight.grad, atol=1e-4, rtol=1e-3)
    split = torch.cat([experts.down.grad for _, experts in places])
    torch.testing.assert_close(split, whole.experts.down.grad, atol=1e-4, rtol=1e-3)


# What a training step needs


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_that_is_computed_again_in_the_backward_pass_counts_its_tokens_once(recompute):
    layer, x = fill(MixtureOfExperts(12, 10, SIGMOID)), numbers(4, 2, 6, 12).requires_grad_()
    runs = []

    def forward(x):
        y, routing = layer(x)
        runs.append(1)
        return y, balance_loss(routing, sequences=2), routing.loads

    y, term, load = checkpoint(forward, x, use_reentrant=False) if recompute else forward(x)
    (y.square().mean() + 1e-4 * term).backward()
    assert len(runs) == 1 + recompute
    assert int(load.sum()) == 2 * 6 * 3 and not load.requires_grad
    before = layer.router.bias.clone()
    layer.after_step(load, 0.01)
    expected = before + 0.01 * (load.float().mean() - load).sign()
    torch.testing.assert_close(layer.router.bias, expected)
    assert layer.router.weight.grad.abs().sum() > 0


def test_a_router_without_a_bias_takes_the_hook_and_stays_as_it_is():
    layer = MixtureOfExperts(12, 10, RouterConfig(4, 2))
    before = {name: weight.clone() for name, weight in layer.state_dict().items()}
    layer.after_step(torch.arange(4), 0.01)
    assert all(torch.equal(before[name], weight) for name, weight in layer.state_dict().items())


def test_the_bias_moves_by_the_loads_of_all_ranks_and_is_saved_with_the_weights():
    layer, other = (fill(MixtureOfExperts(12, 10, SIGMOID)) for _ in range(2))
    loads = [each(numbers(seed, 20, 12))[1].loads for seed, each in ((1, layer), (2, other))]
    for each in (layer, other):
        each.after_step(sum(loads), 0.001)
    assert torch.equal(layer.router.bias, other.router.bias)
    fresh = MixtureOfExperts(12, 10, SIGMOID)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.router.bias, layer.router.bias)


# How it is built


def test_a_router_and_experts_of_ones_own_take_the_librarys_place():
    seen = []

    def my_route(logits, k, *, bias, **options):
        seen.append((options, bias is None))
        return route_sigmoid(logits, k, bias=bias, **options)

    def my_experts(x, experts, weights, gate_up, down):
        seen.append("experts")
        return experts_loop(x, experts, weights, gate_up, down)

    x, whole = numbers(5, 4, 12), fill(MixtureOfExperts(12, 10, SIGMOID))
    mine = fill(MixtureOfExperts(12, 10, SIGMOID, route=my_route, form=my_experts))
    torch.testing.assert_close(mine(x)[0], whole(x)[0], atol=1e-6, rtol=1e-5)
    assert seen == [(dict(groups=4, kept_groups=2, normalise=True, scale=2.5), False), "experts"]


def test_the_shared_experts_matrices_come_from_the_models_factory_with_their_names():
    made = []

    def linear(inputs, outputs, sections=None, *, name):
        made.append((name, inputs, outputs, sections))
        return nn.Linear(inputs, outputs, bias=False)

    MixtureOfExperts(12, 10, SIGMOID, shared_size=7, linear=linear, name="layers.3.moe")
    assert made == [("layers.3.moe.shared.gate_up", 12, 14, (7, 7)), ("layers.3.moe.shared.down", 7, 12, None)]


def test_on_the_meta_device_it_has_shapes_alone_and_no_number_is_read():
    with torch.device("meta"):
        layer = MixtureOfExperts(7168, 2048, RouterConfig(256, 8, "sigmoid", bias=True, groups=8, kept_groups=4))
    assert sum(weight.numel() for weight in layer.parameters()) == 256 * 3 * 2048 * 7168 + 256 * 7168
    with nothing_waits():
        layer.dispatch = lambda x, experts, weights, run: x
        y, routing = layer(torch.empty(2, 3, 7168, device="meta"))
        layer.after_step(routing.loads, 0.001)
    assert y.shape == (2, 3, 7168) and routing.weights.shape == (6, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hidden_size=0), "hidden_size must be at least 1, got 0"),
        (dict(shared_size=-1), "shared_size must be at least 0, got -1"),
        (dict(local=range(3)), "dispatch must be given where only 3 of 8 experts are here"),
        (dict(local=range(3, 9)), r"local must be consecutive experts of range\(0, 8\), got range\(3, 9\)"),
        (dict(local=range(0, 8, 2)), "local must be consecutive experts"),
    ],
)
def test_refusals_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts(**dict(hidden_size=12, expert_size=10, router=SIGMOID) | options)
