"""Backends: rotation, scale and values inside k, over odd shapes; and what is refused, before anything is computed."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.rotary import rotate, rotation
from llmsys.cache import (
    BACKENDS,
    Batch,
    CacheSpec,
    Chunk,
    ContiguousCache,
    Entry,
    LayerCache,
    NoCache,
    PagedCache,
    as_backend,
    batch_of,
    check_backend,
    check_batch,
)
from llmsys.models.llama import Llama, LlamaConfig

TINY = LlamaConfig(
    name="tiny", vocab_size=7, hidden_size=8, layers=1, heads=2, kv_heads=1, head_size=4, mlp_size=8, context_length=9
)  # fmt: skip
STAGES = st.sampled_from(["naive", "online", "tiled", "sdpa"])
SCALES = st.sampled_from([None, 0.3, 1 / math.sqrt(192)])


@st.composite
def steps(draw):
    """(q, k, v), a turn's size or 0 (the last elements of a head that turn), whether neighbours are pairs, the pieces
    in which the tokens come, and whether the values are columns of k (v is then None)."""
    B, Hkv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pieces = draw(st.lists(st.sampled_from([1, 2, 3, 7, 17]), min_size=1, max_size=4))
    R = 2 * draw(st.integers(0, 4))
    Dk = R + draw(st.sampled_from([1, 2, 5]))
    inside = draw(st.booleans())
    if not inside and R and draw(st.booleans()):
        Dk = R  # all of a head turns, as in Llama
    T = sum(pieces)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q, k, v = (
        torch.randn(B, heads, T, D, generator=random, dtype=torch.float64)
        for heads, D in ((Hkv * group, Dk), (Hkv, Dk), (Hkv, draw(st.integers(1, 6))))
    )
    return q, k, None if inside else v, R, draw(st.booleans()), pieces


def turned_by_definition(x, positions, R, interleaved):
    """The last R elements of each head as complex numbers, times e^(i · position · base^(−2j/R))."""
    if R == 0:
        return x
    still, x = x[..., :-R], x[..., -R:]
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    frequency = 100.0 ** (-torch.arange(0, R, 2).double() / R)
    angle = positions.double()[:, None] * frequency
    z = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    turned = torch.stack((z.real, z.imag), -1).flatten(-2) if interleaved else torch.cat((z.real, z.imag), -1)
    return torch.cat((still, turned), dim=-1)


def turn_of(positions, R, interleaved):
    return rotation(positions, R, base=100.0, interleaved=interleaved, dtype=torch.float64) if R else None


@given(case=steps(), scale=SCALES, stage=STAGES, with_spec=st.booleans())
@settings(max_examples=60)
def test_in_any_pieces_a_cache_attends_as_the_definition_does(case, scale, stage, with_spec):
    q, k, v, R, interleaved, pieces = case
    T, Dk = q.shape[2:]
    Dv = Dk - R if v is None else v.shape[3]
    positions = torch.arange(T)
    expected = naive_attention(
        turned_by_definition(q, positions, R, interleaved),
        turned_by_definition(k, positions, R, interleaved),
        k[..., :Dv] if v is None else v,
        causal=True,
        scale=scale,
    )
    spec = CacheSpec((LayerCache(4, k.shape[1], Dk, Dv, q.dtype, v is None),)) if with_spec else None
    whole, cache = as_backend(stage, cache=False, spec=spec), as_backend(stage, capacity=T + 1, spec=spec)
    batch = whole.begin(torch.zeros(q.shape[0], T, dtype=torch.int64))
    got = whole.attend(4, q, k, v, batch, turn=turn_of(batch.positions, R, interleaved), scale=scale)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)  # the angles are computed in fp32

    found = []
    for part in positions.split(pieces):
        batch = cache.begin(torch.zeros(q.shape[0], len(part), dtype=torch.int64))
        assert torch.equal(batch.positions, part)
        now = [x if x is None else x[:, :, part] for x in (q, k, v)]
        found.append(cache.attend(4, *now, batch, turn=turn_of(part, R, interleaved), scale=scale))
    torch.testing.assert_close(torch.cat(found, dim=2), expected, atol=1e-5, rtol=1e-5)
    kept = LayerCache(4, k.shape[1], Dk, Dv, q.dtype, v is None)
    assert cache.bytes == q.shape[0] * (T + 1) * kept.bytes_per_token


def test_the_spec_says_how_many_columns_of_k_are_values():
    """A latent whose last columns turn nowhere: without the spec, nothing could tell that they are no values."""
    q, k = torch.randn(2, 1, 2, 5, 6)
    spec = CacheSpec((LayerCache(0, heads=2, Dk=6, Dv=4, dtype=torch.float32, values_in_keys=True),))
    batch = Batch(torch.arange(5))
    expected = naive_attention(q, k, k[..., :4], causal=True)
    torch.testing.assert_close(NoCache(spec=spec).attend(0, q, k, None, batch), expected)
    cache = ContiguousCache(capacity=9, spec=spec)
    torch.testing.assert_close(cache.attend(0, q, k, None, cache.begin(q[:, 0, :, 0])), expected)
    assert cache.bytes == 9 * 2 * 6 * 4, "the values are not kept again"
    assert NoCache().attend(0, q, k, None, batch).shape == (1, 2, 5, 6), "all of k, where nothing says otherwise"


@pytest.mark.parametrize("backend", [NoCache, lambda **spec: ContiguousCache(capacity=9, **spec)])
@pytest.mark.parametrize("Dv", [None, 5])
def test_a_column_that_turns_is_no_value(backend, Dv):
    q, k = torch.randn(2, 1, 2, 5, 6)
    spec = CacheSpec((LayerCache(0, 2, 6, Dv, torch.float32, values_in_keys=True),)) if Dv else None
    turn = rotation(torch.arange(5), 6 if Dv is None else 2)
    made = backend(spec=spec)
    with pytest.raises(ValueError, match="v must be given here"):
        made.attend(0, q, k, None, made.begin(q[:, 0, :, 0]), turn=turn)


def test_rows_at_different_positions_turn_each_by_its_own():
    q, k, v = torch.randn(3, 2, 3, 4, 6, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3], [9, 10, 11, 12]])
    got = NoCache().attend(0, q, k, v, Batch(positions), turn=turn_of(positions, 6, False))
    for row in range(2):
        x, y = (turned_by_definition(each[row : row + 1], positions[row], 6, False) for each in (q, k))
        expected = naive_attention(x, y, v[row : row + 1], causal=True)
        torch.testing.assert_close(got[row : row + 1], expected, atol=1e-5, rtol=1e-5)


@given(shift=st.integers(0, 500), R=st.sampled_from([2, 6, 8]), interleaved=st.booleans())
def test_scores_depend_on_the_distance_of_two_tokens_alone(shift, R, interleaved):
    q, k = torch.randn(2, 1, 1, 5, R)
    here, there = (rotation(torch.arange(5) + s, R, interleaved=interleaved) for s in (0, shift))
    near = rotate(q, here) @ rotate(k, here).mT
    torch.testing.assert_close(rotate(q, there) @ rotate(k, there).mT, near, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rotation(torch.arange(3), 5), "size must be even and at least 2"),
        (lambda: rotation(torch.arange(3), 4, divisors=(1.0,)), "divisors must be one a pair, 2 in all, got 1"),
        (lambda: rotate(torch.zeros(1, 1, 3, 2), rotation(torch.arange(3), 4)), "at most the 2 elements of a head"),
    ],
)
def test_a_rotation_that_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class OfBefore:
    """The contract as it was when q and k came rotated."""

    def begin(self, tokens):
        return Batch(torch.arange(tokens.shape[1]))

    def attend(self, layer, q, k, v, batch):
        raise AssertionError("nothing may be computed")


class OfToday(OfBefore):
    def attend(self, layer, q, k, v, batch, *, turn=None, scale=None):
        return q


class Passing(OfBefore):
    def attend(self, *arguments, **keywords):
        return arguments[1]


def test_a_backend_is_handed_back_and_one_of_before_is_refused_with_the_remedy():
    for backend in (OfToday(), Passing(), NoCache(), ContiguousCache(capacity=1)):
        assert as_backend(backend) is backend
    with pytest.raises(ValueError, match=r"attention: OfBefore.attend does not take turn=.*q, k = rotate\(q, turn\)"):
        as_backend(OfBefore())
    for nothing in ("sdpa", None, ContiguousCache, torch.zeros(1)):
        with pytest.raises(ValueError, match="attention must be a backend here"):
            check_backend(nothing)


@pytest.mark.parametrize(
    "backend, chunk, block_size, message",
    [
        (NoCache(), Chunk([3], computed=2), None, r"chunks\[0\].computed must be 0 without a cache, got 2"),
        (ContiguousCache(capacity=4, sequences=1), Chunk([3], 0, [1]), 4, "must be one of the cache's rows, .* got 1"),
        (ContiguousCache(capacity=4), Chunk([3], 0, [0]), 4, "sequences must be given"),
        (PagedCache(num_blocks=2, block_size=4), Chunk([3], 0, [2]), 4, r"chunks\[0\].blocks must be .* got 2"),
        (PagedCache(num_blocks=2, block_size=4), Chunk([3], 0, [1]), 8, "the cache's block_size, 4, got 8"),
    ],
)
def test_a_batch_that_a_backend_cannot_take_is_refused_before_the_model_computes(backend, chunk, block_size, message):
    model = Llama(TINY).requires_grad_(False)
    computed = []
    model.embedding.register_forward_pre_hook(lambda *_: computed.append("embedding"))
    refused = batch_of([chunk], block_size=block_size)
    for _ in range(2):  # what has been refused once is not taken for what has been looked at
        with pytest.raises(ValueError, match=message):
            model(refused.tokens, backend, refused)
    assert not computed
    if backend.block_size is not None and getattr(backend, "sequences", 1) is not None:
        taken = batch_of([Chunk([3], 0, [0])], block_size=backend.block_size)
        assert model(taken.tokens, backend, taken).shape == (1, 1, TINY.vocab_size) and computed
    assert model(torch.tensor([[3]]), OfToday()).shape == (1, 1, TINY.vocab_size)  # it need not have check_batch


def test_a_cache_that_has_refused_a_batch_still_goes_on_by_itself():
    for cache in (PagedCache(num_blocks=3, block_size=4), ContiguousCache(capacity=4, sequences=1)):
        with pytest.raises(ValueError, match="got 9"):
            check_batch(cache, batch_of([Chunk([3], 0, [9])], block_size=4))
        assert cache.begin(torch.zeros(1, 2)).positions.flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    "attention, options, message",
    [
        ("contigous", {}, r"naive, .*auto \(stages\), contiguous, paged \(backends\).*Did you mean 'contiguous'"),
        ("tilde", {}, "Did you mean 'tiled'"),
        (None, {}, "attention must be one of naive"),
        (["sdpa"], {}, "attention must be one of naive"),
        ("contiguous", {}, "capacity must be given for a cache.*got 'contiguous'"),
        ("contiguous", {"capacity": 4, "cache": False}, "'contiguous', which is a cache"),
        ("contiguous", {"capacity": 0}, "capacity must be at least 1 token, got 0"),
        ("sdpa", {"cache": True}, "capacity must be given for a cache"),
        (naive_attention, {"cache": True}, "capacity must be given for a cache"),
        (NoCache(), {"cache": False}, "a backend owns its cache"),
        (ContiguousCache, {}, "attention must be a backend here"),
    ],
)
def test_what_attention_cannot_be_is_refused(attention, options, message):
    bare = inspect.unwrap(as_backend)  # without the checks of types that the tests add
    with pytest.raises(ValueError, match=message):
        bare(attention, **options)


def test_names_and_functions_become_backends():
    assert isinstance(as_backend("tiled", capacity=3), ContiguousCache) and isinstance(as_backend("tiled"), NoCache)
    assert isinstance(as_backend("tiled", capacity=3, cache=False), NoCache)
    assert isinstance(as_backend(naive_attention, capacity=3), NoCache)
    assert as_backend(naive_attention, capacity=3, cache=True).stage is naive_attention
    for name in BACKENDS:
        check_backend(as_backend(name, capacity=3))
    assert as_backend("contiguous", capacity=3).capacity == 3


class TestSpec:
    SPEC = CacheSpec((LayerCache(3, heads=2, Dk=4, Dv=6, dtype=torch.float32),))

    @pytest.mark.parametrize(
        "layer, change, message",
        [
            (0, {}, "layer 0 is not in the spec"),
            (3, {"k": torch.zeros(1, 1, 5, 4)}, "layer 3 must hand over keys of 2 heads .*got keys of 1 heads"),
            (3, {"k": torch.zeros(1, 2, 5, 8)}, "Dk = 4, Dv = 6, .*got .*Dk = 8"),
            (3, {"v": torch.zeros(1, 2, 5, 4)}, "Dv = 6.*got .*Dv = 4"),
            (3, {"v": None}, "values of their own; got .*first Dv columns|v must be given"),
            (3, {"k": torch.zeros(1, 2, 5, 4).double()}, "torch.float32.*got .*torch.float64"),
        ],
    )
    def test_what_a_layer_did_not_say_is_refused(self, layer, change, message):
        given = {"k": torch.zeros(1, 2, 5, 4), "v": torch.zeros(1, 2, 5, 6)} | change
        cache = ContiguousCache(capacity=9, spec=self.SPEC)
        with pytest.raises(ValueError, match=message):
            cache.attend(layer, torch.zeros(1, 2, 5, 4), given["k"], given["v"], cache.begin(torch.zeros(1, 5)))

    def test_without_a_spec_the_first_step_says_it(self):
        cache = ContiguousCache(capacity=9)
        q = torch.zeros(1, 2, 1, 4)
        cache.attend(0, q, q, q, cache.begin(q[:, 0, :, 0]))
        with pytest.raises(ValueError, match="layer 0 must hand over .*values of their own; got .*as values"):
            cache.attend(0, q, q, None, cache.begin(q[:, 0, :, 0]))

    def test_bytes_of_named_models(self):
        """bf16: Llama-3.1-405B keeps 516,096 bytes a token and DeepSeek-V3 70,272, of which none are values."""
        bf16 = torch.bfloat16
        llama = CacheSpec(tuple(LayerCache(i, 8, 128, 128, bf16) for i in range(126)))
        deepseek = CacheSpec(tuple(LayerCache(i, 1, 576, 512, bf16, values_in_keys=True) for i in range(61)))
        assert (llama.bytes_per_token, deepseek.bytes_per_token) == (516_096, 70_272)

    def test_further_entries_are_counted_and_the_contiguous_cache_has_no_place_for_them(self):
        entry = Entry("index keys", 128, torch.bfloat16)
        layer = LayerCache(2, 1, 576, 512, torch.bfloat16, values_in_keys=True, entries=(entry,))
        assert layer.bytes_per_token == 2 * (576 + 128)
        with pytest.raises(ValueError, match="layer 2 wants index keys kept, too"):
            ContiguousCache(capacity=4, spec=CacheSpec((layer,)))

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda: LayerCache(0, 0, 4, 4, torch.float32), "heads must be at least 1, got 0"),
            (lambda: LayerCache(-1, 1, 4, 4, torch.float32), "layer must be at least 0"),
            (lambda: LayerCache(0, 1, 4, 5, torch.float32, values_in_keys=True), "Dv must be at most Dk = 4"),
            (lambda: Entry("keys", 0, torch.float32), "'keys' must be at least 1"),
            (lambda: CacheSpec((LayerCache(0, 1, 4, 4, torch.float32),) * 2), "once each, got .0, 0."),
        ],
    )
    def test_a_spec_that_cannot_be_is_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
