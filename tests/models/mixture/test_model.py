"""A model with mixtures of experts: where its tokens go, what it adds to its training, and that it is a Llama in all
else."""

from dataclasses import replace

import pytest
import torch

from llmsys.cache import ContiguousCache, NoCache
from llmsys.models import Balance, MixtureConfig, MixtureLlama, load_model
from llmsys.models.shapes import Experts, shape_of
from llmsys.moe import RouterConfig, balance_loss
from llmsys.training import Corpus, TrainConfig, load_checkpoint, train
from tests.training.conftest import make_texts, make_tokenizer

CONFIG = MixtureConfig(
    "small", vocab_size=258, hidden_size=32, layers=3, heads=4, kv_heads=2, head_size=8, mlp_size=48, context_length=64,
    qk_norm=True, router=RouterConfig(8, 2, "sigmoid", bias=True), expert_size=16, shared_size=16, dense_layers=(0,),
)  # fmt: skip
SETTINGS = TrainConfig(steps=6, batch=3, context=17, learning_rate=3e-3, evaluate_every=50, evaluate_batches=1)


def small(**options) -> MixtureLlama:
    torch.manual_seed(0)
    return MixtureLlama(CONFIG, make_tokenizer(), **options).requires_grad_(False)


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_texts(make_texts(), make_tokenizer())


def test_routings_are_those_of_the_forward_pass_with_or_without_a_cache():
    model, tokens = small(), torch.randint(0, 258, (2, 13))
    x, routings = model.routed(tokens)
    assert torch.equal(x, model.hidden(tokens)) and list(routings) == [1, 2]
    (entering,) = model.hidden(tokens, taps=[1])[1]
    layer = model.layers[1]
    turn, backend, batch = model.begin(tokens, None, None)[1:]
    seen = layer.mlp_norm(entering + layer.attention(layer.attention_norm(entering), turn, backend, batch))
    assert torch.equal(routings[1].experts, layer.moe.router(seen).experts)
    assert routings[2].loads.sum() == 2 * 13 * 2

    cache = ContiguousCache(capacity=13)
    parts = [model.routed(some, cache)[1][2].experts.view(2, -1, 2) for some in tokens.split([6, 6, 1], dim=1)]
    assert torch.equal(torch.cat(parts, dim=1), routings[2].experts.view(2, 13, 2))


@pytest.mark.parametrize("loss", ["sequence", "batch"])
def test_a_training_step_has_the_loss_its_balance_and_its_loads(loss):
    model, tokens = small(balance=Balance(loss, alpha=0.3)), torch.randint(0, 258, (3, 12))
    step = model.training_step(tokens, NoCache())
    assert set(step.loads) == {"moe.1", "moe.2"} and all(load.sum() == 3 * 11 * 2 for load in step.loads.values())
    logits = model(tokens[:, :-1])
    torch.testing.assert_close(
        step.loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    )
    routings = model.routed(tokens[:, :-1])[1]
    sequences = {"sequence": 3, "batch": 1}[loss]
    expected = sum(balance_loss(routing, sequences=sequences) for routing in routings.values())
    torch.testing.assert_close(step.terms["balance"], 0.3 * expected)


def test_training_moves_biases_by_the_rate_and_only_where_there_is_one(corpus):
    still, moving = small(), small(balance=Balance(rate=0.01))
    for model in (still, moving):
        run = train(model, corpus, SETTINGS)
        assert run.losses[-1] < run.losses[0]
    assert not any(moe.router.bias.any() for moe in still.mixtures.values())
    for moe in moving.mixtures.values():
        steps = moe.router.bias / 0.01
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        assert 0 < steps.abs().max() <= SETTINGS.steps + 1e-4


def test_a_run_that_is_resumed_is_the_run_that_was_not(corpus, tmp_path):
    whole, begun, resumed = (small(balance=Balance("batch", 1e-2, 1e-2)) for _ in range(3))
    train(whole, corpus, SETTINGS)
    train(begun, corpus, SETTINGS, out=tmp_path / "run", should_stop=lambda: True)
    run = train(resumed, corpus, SETTINGS, out=tmp_path / "run", resume=True)
    state = resumed.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in whole.state_dict().items())
    again = small()
    load_checkpoint(run.checkpoint, again)
    loaded = load_model(run.checkpoint)
    tokens = torch.randint(0, 258, (1, 9))
    assert torch.equal(again(tokens), whole(tokens)) and torch.equal(loaded(tokens), whole(tokens))


def test_parts_of_it_hand_on_what_the_whole_computes():
    whole, tokens = small(), torch.randint(0, 258, (2, 9))
    first, last = (MixtureLlama(CONFIG, layers=layers).requires_grad_(False) for layers in (range(2), range(2, 3)))
    state = whole.state_dict()
    for part in (first, last):
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    assert torch.equal(last(first(tokens)), whole(tokens))
    assert list(first.mixtures) == [1] and list(last.mixtures) == [2] and not first.is_whole


def test_ranks_with_a_share_of_the_experts_add_up_to_the_whole():
    """All ranks have all tokens here: each runs the experts that it has, and the results are added."""
    whole, tokens = small(), torch.randint(0, 258, (2, 9))
    shares = [range(0, 3), range(3, 8)]
    parts = []

    def dispatch(x, experts, weights, run):
        total = run(x, torch.where(experts < 3, experts, -1), weights)
        layer = next(i for i, moe in ranks[0].mixtures.items() if moe.experts is run)
        other = ranks[1].mixtures[layer].experts
        parts.append(layer)
        return total + other(x, torch.where(experts >= 3, experts - 3, -1), weights)

    ranks = [MixtureLlama(CONFIG, local=local, dispatch=dispatch).requires_grad_(False) for local in shares]
    for rank, local in zip(ranks, shares, strict=True):
        state = {
            name: x[local.start : local.stop] if ".moe.experts." in name else x
            for name, x in whole.state_dict().items()
        }
        rank.load_state_dict(state)
        assert not rank.is_whole
    torch.testing.assert_close(ranks[0](tokens), whole(tokens))
    assert parts == [1, 2]


def test_the_shared_experts_matrices_come_from_the_factory_and_have_names():
    named = []

    def linear(inputs, outputs, sections=None, *, name):
        from llmsys.models import Linear

        named.append(name)
        return Linear(inputs, outputs, sections, name=name)

    MixtureLlama(CONFIG, linear=linear)
    assert {"layers.0.gate_up", "layers.2.moe.shared.gate_up", "layers.2.moe.shared.down"} <= set(named)
    assert "layers.1.gate_up" not in named


@pytest.mark.parametrize("router", [RouterConfig(8, 2, "sigmoid", bias=True), RouterConfig(5, 2)])
def test_its_shape_has_its_parameters_and_biases(router):
    config = replace(CONFIG, router=router)
    with torch.device("meta"):
        model = MixtureLlama(config)
    shape = shape_of(config)
    assert shape.parameters == sum(x.numel() for x in (*model.parameters(), *model.buffers()))
    assert shape.experts == Experts(
        router.experts, active=2, shared=1, width=16, dense_layers=1, router_bias=router.bias
    )


def test_a_shape_that_there_are_no_words_for_is_refused():
    for changes in ({"dense_layers": (1,)}, {"shared_size": 17}):
        with pytest.raises(ValueError, match="config must have its dense layers at the bottom"):
            shape_of(replace(CONFIG, **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expert_size": 0}, "expert_size must be at least 1"),
        ({"shared_size": -1}, "shared_size at least 0"),
        ({"dense_layers": (3,)}, r"dense_layers must be of range\(0, 3\), got 3"),
        ({"heads": 3}, "heads must be a multiple"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        replace(CONFIG, **changes)


@pytest.mark.parametrize("wrong", [{"loss": "token"}, {"alpha": -1.0}, {"rate": float("nan")}])
def test_a_balance_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Balance(**wrong)
