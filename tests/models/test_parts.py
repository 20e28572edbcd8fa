"""A model from a factory of matrices, in parts, and with taps: always the same numbers as the whole, plain model."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmsys.attention.rotary import rotation
from llmsys.cache import Batch, ContiguousCache, LayerCache, NoCache
from llmsys.models import Linear, Llama, LlamaConfig, generate, load_model, save_model

CONFIG = LlamaConfig(
    name="parts", vocab_size=31, hidden_size=12, layers=5, heads=6, kv_heads=2, head_size=4, mlp_size=10,
    context_length=32, qk_norm=True, tied_embeddings=True,
)  # fmt: skip
TOKENS = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(1))


def model_of(config=CONFIG, **options):
    torch.manual_seed(2)
    model = Llama(config, **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


def part_of(whole, layers, **options):
    part = Llama(whole.config, layers=layers, **options)
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    return part.requires_grad_(False)


def cut(layers):
    """The layers in consecutive ranges, some of them empty."""
    borders = st.lists(st.integers(0, layers), max_size=4).map(lambda found: [0, *sorted(found), layers])
    return borders.map(lambda found: [range(a, b) for a, b in zip(found, found[1:], strict=False)])


@given(ranges=cut(CONFIG.layers), tied=st.booleans(), cached=st.booleans())
@settings(max_examples=25)
def test_parts_one_after_the_other_are_the_whole(ranges, tied, cached):
    whole = model_of(replace(CONFIG, tied_embeddings=tied))
    last = len(ranges) - 1
    parts = [part_of(whole, each, embedding=i == 0, head=i == last) for i, each in enumerate(ranges)]
    backends = [ContiguousCache(capacity=9, spec=part.cache_spec()) if cached else NoCache() for part in parts]
    whole_backend = ContiguousCache(capacity=9) if cached else NoCache()
    for tokens in TOKENS.split([4, 5] if cached else 9, dim=1):
        x = tokens
        for part, backend in zip(parts, backends, strict=True):
            x = part(x, backend)
        assert torch.equal(x, whole(tokens, whole_backend))


def test_a_parts_weights_have_the_names_of_the_whole():
    whole = model_of(replace(CONFIG, tied_embeddings=False))
    first, middle, last = (part_of(whole, each) for each in (range(2), range(2, 3), range(3, 5)))
    names = [list(part.state_dict()) for part in (first, middle, last)]
    assert sum(names, []) == list(whole.state_dict())
    assert names[1][0] == "layers.2.attention_norm.weight" and [whole.is_whole, middle.is_whole] == [True, False]
    assert middle.layers[2].index == 2 and last.layers[-1].index == 4 and len(last.layers) == 2
    with pytest.raises(IndexError, match="layer 0 is not here; here are 3, 4"):
        last.layers[0]
    assert [layer.index for layer in whole.layers[1:3]] == [1, 2]


def test_a_tied_matrix_in_two_parts_is_a_copy_that_says_so():
    whole = model_of()
    first, middle, last = (part_of(whole, each) for each in (range(2), range(2, 3), range(3, 5)))
    assert [part.tied_copy for part in (whole, first, middle, last)] == [None, "embedding.weight", None, "head.weight"]
    assert torch.equal(first.embedding.weight, last.head.weight)
    both = part_of(whole, range(0), embedding=True, head=True)
    assert both.tied_copy is None and both.head.weight is both.embedding.weight
    # Its gradient, added to the other's, is that of the one matrix.
    for part in (whole, first, middle, last):
        part.requires_grad_(True)
    whole(TOKENS).logsumexp(-1).sum().backward()
    last(middle(first(TOKENS))).logsumexp(-1).sum().backward()
    torch.testing.assert_close(first.embedding.weight.grad + last.head.weight.grad, whole.embedding.weight.grad)


@pytest.mark.parametrize("tied", [True, False])
def test_a_part_loads_from_a_checkpoint_of_the_whole(tmp_path, tied):
    whole = model_of(replace(CONFIG, tied_embeddings=tied))
    save_model(whole, tmp_path)
    x = TOKENS
    for layers in (range(2), range(2, 4), range(4, 5)):
        part = load_model(tmp_path, layers=layers)
        assert part.layer_range == layers and not part.is_whole
        x = part(x)
    assert torch.equal(x, whole(TOKENS))


@pytest.mark.parametrize("layers", [range(3, 6), range(0, 4, 2), range(-1, 2), range(3, 1)])
def test_layers_that_are_no_part_are_refused(layers):
    with pytest.raises(ValueError, match=r"consecutive ones of range\(0, 5\)"):
        Llama(CONFIG, layers=layers)


def test_a_part_takes_hidden_states_and_does_not_do_what_only_a_whole_can(tmp_path):
    part = model_of(layers=range(1, 3))
    for wrong in (torch.zeros(2, 9), torch.zeros(2, 9, 7), torch.zeros(2, 0, 12), torch.zeros(2, 9, 12).long()):
        with pytest.raises(ValueError, match=r"no embedding: in place of tokens it takes hidden states \(B, T, 12\)"):
            inspect.unwrap(Llama.hidden)(part, wrong)  # without the checks of shapes that the tests add
    with pytest.raises(ValueError, match="model must be a whole one to generate"):
        generate(part, [1, 2])
    with pytest.raises(ValueError, match="model must be a whole one to be saved"):
        save_model(part, tmp_path)
    assert not list(tmp_path.iterdir())


@given(taps=st.lists(st.integers(0, 5), max_size=5), cached=st.booleans())
@settings(max_examples=20)
def test_taps_are_what_enters_those_layers(taps, cached):
    model = model_of()
    entered = {}
    hooks = [layer.register_forward_pre_hook(lambda layer, given: entered.update({layer.index: given[0]}))
             for layer in model.layers]  # fmt: skip
    hooks.append(model.norm.register_forward_pre_hook(lambda _, given: entered.update({5: given[0]})))
    backend = ContiguousCache(capacity=9) if cached else None
    got = model.hidden(TOKENS, backend, taps=taps)
    if taps:
        got, tapped = got
        assert len(tapped) == len(taps)
        assert all(torch.equal(x, entered[tap]) for x, tap in zip(tapped, taps, strict=True))
    assert torch.equal(got, model.hidden(TOKENS))
    for hook in hooks:
        hook.remove()


def test_taps_of_a_part_are_numbered_in_the_whole():
    whole = model_of()
    last = part_of(whole, range(3, 5))
    _, (third, fourth) = whole.hidden(TOKENS, taps=(3, 4))
    _, (again,) = last.hidden(third, taps=[4])
    assert torch.equal(again, fourth)
    for tap in (2, 6):
        with pytest.raises(ValueError, match=f"taps must be from 3 to 5, got {tap}"):
            last.hidden(third, taps=(4, tap))


def test_every_matrix_comes_from_the_factory():
    asked = []

    def linear(inputs, outputs, sections=None, *, name):
        asked.append((name, inputs, outputs, sections))
        return Linear(inputs, outputs)

    model = model_of(layers=range(2), head=True, linear=linear)
    assert asked == [
        *(row for i in range(2) for row in (
            (f"layers.{i}.qkv", 12, 40, (24, 8, 8)), (f"layers.{i}.output", 24, 12, None),
            (f"layers.{i}.gate_up", 12, 20, (10, 10)), (f"layers.{i}.down", 10, 12, None),
        )),
        ("head", 12, 31, (31,)),
    ]  # fmt: skip
    matrices = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.dim() == 2}
    assert matrices == {f"{name}.weight" for name, *_ in asked} | {"embedding.weight"}


class Share(nn.Module):
    """One rank's share of a matrix whose output is split: a piece of each section."""

    def __init__(self, inputs, sections, rank, ranks):
        super().__init__()
        self.sections = tuple(size // ranks for size in sections)
        self.rows = torch.cat([
            torch.arange(start + rank * piece, start + (rank + 1) * piece)
            for start, piece in zip((sum(sections[:i]) for i in range(len(sections))), self.sections, strict=True)
        ])  # fmt: skip
        self.weight = nn.Parameter(torch.empty(len(self.rows), inputs))

    def forward(self, x):
        return x @ self.weight.mT


class SumOfShares(nn.Module):
    """One rank's share of a matrix whose input is split. The tests' ranks add up by hand, so nothing is sent."""

    def __init__(self, inputs, outputs, rank, ranks):
        super().__init__()
        self.columns = slice(rank * inputs // ranks, (rank + 1) * inputs // ranks)
        self.weight = nn.Parameter(torch.empty(outputs, inputs // ranks))

    def forward(self, x):
        return x @ self.weight.mT


def test_a_factory_can_split_a_layer_over_ranks_of_which_the_layer_knows_nothing():
    """Two ranks' attention and MLP add up to the whole layer's, and each rank caches its own heads only."""
    whole = model_of(replace(CONFIG, layers=1, qk_norm=False))
    state = whole.state_dict()
    shares = []
    for rank in range(2):

        def linear(inputs, outputs, sections=None, *, name, rank=rank):
            made = Share(inputs, sections, rank, 2) if sections else SumOfShares(inputs, outputs, rank, 2)
            weight = state[f"{name}.weight"]
            made.weight.data = weight[made.rows] if sections else weight[:, made.columns]
            return made

        share = Llama(whole.config, layers=range(1), embedding=False, head=False, linear=linear)
        assert share.cache_spec().layers == (LayerCache(0, heads=1, Dk=4, Dv=4, dtype=torch.float32),)
        shares.append(share.layers[0])
    x, batch, layer = torch.randn(2, 9, 12), Batch(torch.arange(9)), whole.layers[0]
    turn = rotation(batch.positions, 4)
    attended = sum(share.attention(x, turn, NoCache(), batch) for share in shares)
    torch.testing.assert_close(attended, layer.attention(x, turn, NoCache(), batch))
    torch.testing.assert_close(sum(share.mlp(x) for share in shares), layer.mlp(x))


def test_a_factory_that_splits_a_head_or_a_tied_matrix_is_refused():
    def halves(inputs, outputs, sections=None, *, name):
        made = Linear(inputs, outputs // 2)
        made.sections = tuple(size // 2 for size in sections or (outputs,))
        return made

    with pytest.raises(ValueError, match=r"whole heads of 4 elements, got sections \(12, 2, 2\)"):
        Llama(replace(CONFIG, heads=6, kv_heads=1), linear=halves)
    with pytest.raises(ValueError, match=r"the factory made it \(15, 12\) where the embedding's is \(31, 12\)"):
        Llama(CONFIG, linear=halves)


def test_cache_spec_is_what_a_cache_is_made_of():
    model = model_of()
    spec = model.cache_spec()
    assert spec.layers == tuple(LayerCache(i, heads=2, Dk=4, Dv=4, dtype=torch.float32) for i in range(5))
    assert [each.layer for each in part_of(model, range(2, 4)).cache_spec().layers] == [2, 3]
    cache = ContiguousCache(capacity=11, spec=spec)
    model(TOKENS, cache)
    assert cache.bytes == 2 * 11 * spec.bytes_per_token == 2 * 11 * 5 * 2 * (4 + 4) * 4
    assert model.bfloat16().cache_spec().bytes_per_token == spec.bytes_per_token // 2


def test_a_backend_of_before_is_refused_before_anything_is_computed():
    class OfBefore:
        def begin(self, tokens):
            raise AssertionError("nothing may be computed")

        def attend(self, layer, q, k, v, batch):
            raise AssertionError("nothing may be computed")

    model = model_of()
    for run in (lambda: model(TOKENS, OfBefore()), lambda: generate(model, [1, 2], attention=OfBefore())):
        with pytest.raises(ValueError, match="attention: OfBefore.attend does not take turn="):
            run()


def test_a_named_backend_generates_the_same():
    model = model_of()
    assert generate(model, [3, 1, 4], attention="contiguous", max_new_tokens=8).tokens == (
        generate(model, [3, 1, 4], cache=False, max_new_tokens=8).tokens
    )


def test_the_model_hands_over_what_it_says_it_does():
    """Unrotated q and k, with what rotates them: at position 0 and elsewhere they are the same numbers."""
    seen = []

    class Looking(NoCache):
        def attend(self, layer, q, k, v, batch, *, turn=None, scale=None):
            seen.append((layer, k, turn, scale))
            return super().attend(layer, q, k, v, batch, turn=turn, scale=scale)

    model = model_of()
    token = TOKENS[:1, :1]
    for position in (0, 7):
        model(token, Looking(), Batch(torch.tensor([position])))
    (layer, k, turn, scale), (_, other, later, _) = seen[0], seen[5]
    assert layer == 0 and scale is None and torch.equal(k, other) and turn.size == 4
    assert torch.equal(turn.cos, torch.ones(1, 4)) and math.isclose(float(later.cos[0, 0]), math.cos(7), abs_tol=1e-6)
