"""Writing into pages: what goes where, what is turned, and what is left alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.head_norms import normalise
from llmsys.attention.paged import write, write_pages, write_pages_reference
from llmsys.attention.rotary import Rotation, rotate, rotation
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from tests.attention.sample import examples

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
DEVICE = triton_device()


def case(N, P, Hkv, Dk, Dv, seed, dtype=torch.float32, G=3):
    """q, k, v; pages of NaN; slots, of which some are −1."""
    random = torch.Generator().manual_seed(seed)
    blocks = -(-N // P) + 2
    q, k, v = (torch.randn(N, H, D, generator=random).to(dtype) for H, D in ((G * Hkv, Dk), (Hkv, Dk), (Hkv, Dv)))
    pages = [torch.full((blocks, P, Hkv, D), math.nan, dtype=dtype) for D in (Dk, Dv)]
    slots = torch.randperm(blocks * P, generator=random)[:N].int()
    slots[torch.rand(N, generator=random) < 0.25] = -1
    return [x.to(DEVICE) for x in (q, k, v, *pages, slots)]


def expected(k, v, key_pages, value_pages, slots):
    """Token by token."""
    found = [key_pages.clone(), value_pages.clone()]
    for n, slot in enumerate(slots.tolist()):
        if slot >= 0:
            for x, pages in zip((k, v), found, strict=True):
                pages[slot // pages.shape[1], slot % pages.shape[1]] = x[n]
    return found


def heads_first(x):
    return x.transpose(0, 1)[None]


@settings(max_examples=examples(30), deadline=None)
@given(
    N=st.sampled_from([1, 2, 7]), P=st.sampled_from([1, 4, 5, 16]), Hkv=st.integers(1, 3),
    Dk=st.sampled_from([2, 8, 20]), Dv=st.sampled_from([1, 8, 17]), R=st.sampled_from([None, 2, 6, 20]),
    interleaved=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_each_token_is_in_its_slot_turned_and_nothing_else_is_touched(N, P, Hkv, Dk, Dv, R, interleaved, seed):
    q, k, v, keys, values, slots = case(N, P, Hkv, Dk, Dv, seed)
    positions = torch.randint(0, 500, (N,), device=DEVICE)
    turn = None if R is None else rotation(positions, min(R, Dk), interleaved=interleaved)
    turned = rotate(heads_first(k), turn)[0].transpose(0, 1)
    right = expected(turned, v, keys, values, slots)
    got = write_pages(k, v, keys, values, slots, q=q, turn=turn)
    torch.testing.assert_close(got, rotate(heads_first(q), turn)[0].transpose(0, 1), atol=1e-6, rtol=1e-6)
    for pages, should in zip((keys, values), right, strict=True):
        torch.testing.assert_close(pages, should, atol=1e-6, rtol=1e-6, equal_nan=True)
    if turn is None:
        assert torch.equal(got, q) and torch.equal(values.nan_to_num(), right[1].nan_to_num())


@settings(max_examples=examples(20), deadline=None)
@given(
    N=st.sampled_from([1, 5]), Hkv=st.integers(1, 3), G=st.sampled_from([1, 3, 4]), Dk=st.sampled_from([2, 8, 20, 64]),
    whole=st.booleans(), interleaved=st.booleans(), which=st.sampled_from(["both", "q", "k"]),
    elements=st.sampled_from([16, 64, 1024]), dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_heads_are_normalised_before_they_are_turned_however_many_a_program_has(
    N, Hkv, G, Dk, whole, interleaved, which, elements, dtype, seed
):
    """In half precision they err at most twice as much as the plain form."""
    q, k, v, keys, values, slots = case(N, 4, Hkv, Dk, Dk, seed, dtype, G)
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(Dk, generator=random).to(DEVICE, dtype) for name in "qk"}
    angles = rotation(torch.randint(0, 500, (N,), device=DEVICE), Dk if whole else 2, interleaved=interleaved)
    turn = Rotation(angles.cos.to(dtype), angles.sin.to(dtype), interleaved)
    norms = {f"{name}_norm": weights[name] for name in "qk" if which in ("both", name)}

    def plain(x, name, precision):
        as_wanted = Rotation(turn.cos.to(precision), turn.sin.to(precision), interleaved)
        if f"{name}_norm" in norms:
            x = normalise(x.to(precision), weights[name].to(precision), 1e-5)
        return rotate(heads_first(x.to(precision)), as_wanted)[0].transpose(0, 1).double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "ELEMENTS", elements)
        got = write_pages(k, v, keys, values, slots, q=q, turn=turn, eps=1e-5, **norms)
    kept = slots >= 0
    written = keys.flatten(0, 1)[slots[kept].long()]
    for name, x, found, rows in (("q", q, got, slice(None)), ("k", k, written, kept)):
        exact, low = (plain(x, name, precision)[rows] for precision in (torch.float32, dtype))
        if len(exact):
            assert (found.double() - exact).abs().max() <= 2 * (low - exact).abs().max() + 2e-6
    assert torch.equal(values.flatten(0, 1)[slots[kept].long()], v[kept])
    assert int((~keys.isnan()).all(-1).all(-1).sum()) == int(kept.sum())


@given(N=st.integers(1, 9), P=st.integers(1, 6), Hkv=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_the_reference_writes_token_by_token(N, P, Hkv, seed):
    _, k, v, keys, values, slots = case(N, P, Hkv, 3, 4, seed)
    right = expected(k, v, keys, values, slots)
    write_pages_reference(k, v, keys, values, slots)
    for pages, should in zip((keys, values), right, strict=True):
        torch.testing.assert_close(pages, should, atol=0, rtol=0, equal_nan=True)


def test_a_padded_step_has_a_row_of_angles_for_each_column_or_for_each_token():
    q, k, v, keys, values, slots = case(6, 4, 2, 8, 8, 1)
    positions = torch.randint(0, 99, (3, 2), device=DEVICE)
    for turn in (rotation(positions, 8), rotation(positions[0], 8)):
        padded = k.view(3, 2, 2, 8).transpose(1, 2)
        right = expected(rotate(padded, turn).transpose(1, 2).flatten(0, 1), v, keys, values, slots)
        write_pages(k, v, keys, values, slots, turn=turn)
        torch.testing.assert_close(keys, right[0], atol=1e-6, rtol=1e-6, equal_nan=True)


def test_latent_attention_has_keys_alone_and_strides_may_be_any():
    _, k, _, keys, _, slots = case(5, 4, 2, 8, 8, 2)
    right = expected(k, k, keys, keys, slots)[0]
    k = k.transpose(0, 1).contiguous().transpose(0, 1)
    assert write_pages(k, None, keys, None, slots) is None
    torch.testing.assert_close(keys, right, atol=0, rtol=0, equal_nan=True)


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
def test_every_kept_token_is_written_once_and_no_lane_leaves_its_tensor():
    q, k, v, keys, values, slots = case(9, 4, 3, 20, 17, 3)
    turn = rotation(torch.arange(9), 6)
    with sanitizer.watch(key_pages=keys, value_pages=values) as report:
        write_pages(k, v, keys, values, slots, q=q, turn=turn, q_norm=torch.ones(20), k_norm=torch.ones(20))
    kept = int((slots >= 0).sum())
    assert report.ok and not report.undecided, report
    assert 0 < kept < 9
    assert report.bytes_stored["key_pages"] == kept * 3 * 20 * 4
    assert report.bytes_stored["value_pages"] == kept * 3 * 17 * 4 and report.bytes_stored["turned_ptr"] == q.nbytes


@pytest.mark.skipif(not interpreting(), reason="on a GPU, memory between the pages would have to be there")
def test_pages_2_to_the_31_elements_from_the_first_are_written():
    memory = torch.empty(2**31 + 2**29, dtype=torch.float16)
    k = torch.randn(2, 1, 8).half()
    slots = torch.tensor([17 * 4 + 3, -1], dtype=torch.int32)
    far = memory.as_strided((18, 4, 1, 8), (2**27, 8, 8, 1))
    write_pages(k, None, far, None, slots)
    assert torch.equal(far[17, 3], k[0])


@pytest.mark.parametrize("write", [write_pages, write_pages_reference])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, v, kp, vp, s: (k, None, kp, vp, s), "v and value_pages must both be given"),
        (
            lambda k, v, kp, vp, s: (k[:, :1], v, kp, vp, s),
            "k must be 5 tokens with the heads, size and dtype of",
        ),
        (lambda k, v, kp, vp, s: (k, v[:4], kp, vp, s), "v must be 5 tokens"),
        (lambda k, v, kp, vp, s: (k, v, kp, vp.half(), s), "v must be 5 tokens"),
        (lambda k, v, kp, vp, s: (k, v, kp, vp, s.long()), "slot_mapping must be int32"),
        (lambda k, v, kp, vp, s: (k, v, kp, vp, s[1:]), "slot_mapping must be one for each of k's 5 tokens"),
    ],
)
def test_refusals_name_the_argument(write, change, message):
    _, *arguments = case(5, 4, 2, 8, 6, 5)
    with pytest.raises(ValueError, match=message):
        write(*change(*arguments))


def test_what_cannot_be_turned_is_refused():
    q, k, v, keys, values, slots = case(5, 4, 2, 8, 6, 5)
    with pytest.raises(ValueError, match="turn must be for at most the 8 elements of a head, got 10"):
        write_pages(k, v, keys, values, slots, turn=rotation(torch.arange(5, device=DEVICE), 10))
    with pytest.raises(ValueError, match="q must be"):
        write_pages(k, v, keys, values, slots, q=q[1:])
    with pytest.raises(ValueError, match=r"k_norm must be \(8,\), a number for each element of a head"):
        write_pages(k, v, keys, values, slots, k_norm=torch.ones(6, device=DEVICE))
