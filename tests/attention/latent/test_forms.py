"""The two forms of latent attention are one function, gradients included, and what they refuse."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.attention import STAGES
from llmsys.attention.latent import absorbed_latent_attention, expand_latent, naive_latent_attention
from llmsys.attention.rotary import rotate, rotation

FORMS = {"naive": naive_latent_attention, "absorbed": absorbed_latent_attention}


def draw(B=1, H=2, Tq=3, Tk=5, Dn=6, R=4, L=7, Dv=5, *, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = (B, H, Tq, Dn + R), (B, 1, Tk, L + R), (H, Dn, L), (H, Dv, L)
    return [torch.randn(*shape, generator=random, dtype=dtype) for shape in shapes]


def by_definition(q, latent, key_up, value_up, causal, scale):
    """Head by head and token by token, in loops."""
    B, H, Tq, D = q.shape
    L, Tk = key_up.shape[2], latent.shape[2]
    o = torch.zeros(B, H, Tq, value_up.shape[1], dtype=q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(Tq):
                seen = latent[b, 0, : max(Tk - Tq + i + 1, 0) if causal else Tk]
                if not len(seen):
                    continue
                k = torch.stack([torch.cat((key_up[h] @ each[:L], each[L:])) for each in seen])
                p = torch.softmax(k @ q[b, h, i] * (scale or D**-0.5), 0)
                o[b, h, i] = sum(w * (value_up[h] @ each[:L]) for w, each in zip(p, seen, strict=True))
    return o


sizes = st.sampled_from([1, 2, 3, 7])


@given(
    sizes, sizes, sizes, sizes, sizes, st.sampled_from([2, 4, 6]), sizes, sizes, st.booleans(),
    st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_both_forms_are_the_definition(B, H, Tq, Tk, Dn, R, L, Dv, causal, scale):
    given = draw(B, H, Tq, Tk, Dn, R, L, Dv)
    expected = by_definition(*given, causal, scale)
    for form in FORMS.values():
        torch.testing.assert_close(form(*given, causal=causal, scale=scale), expected)


def test_with_deepseeks_sizes_and_huge_logits_they_agree():
    q, latent, key_up, value_up = draw(1, 4, 3, 37, 128, 64, 512, 128, dtype=torch.float32)
    key_up, value_up = key_up / 512**0.5, value_up / 512**0.5
    for factor in (1.0, 1e4):
        found = [form(q * factor, latent, key_up, value_up, causal=True) for form in FORMS.values()]
        torch.testing.assert_close(*found, atol=2e-5 if factor == 1 else 5e-2, rtol=1e-4)


def test_their_gradients_are_the_same():
    weights = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    gradients = []
    for form in FORMS.values():
        given = [x.requires_grad_() for x in draw(2, 3, 4, 6)]
        (form(*given, causal=True) * weights).sum().backward()
        gradients.append([x.grad for x in given])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("stage", ["online", "tiled", "sdpa"])
def test_any_stage_attends_in_either_form(stage):
    given = draw(dtype=torch.float32)
    expected = naive_latent_attention(*given, causal=True)
    for form in FORMS.values():
        torch.testing.assert_close(form(*given, causal=True, stage=STAGES[stage]), expected)


def test_the_scale_is_that_of_the_query_before_it_was_absorbed():
    given = draw(Dn=128, R=64, L=512, dtype=torch.float32)
    for form in FORMS.values():
        torch.testing.assert_close(form(*given), form(*given, scale=1 / math.sqrt(192)))
        assert (form(*given) - form(*given, scale=1 / math.sqrt(576))).abs().max() > 0.01


def test_a_position_in_the_latent_could_not_be_absorbed():
    """Turned keys of the naive form, [turn(U c) ; r], are no product of any query with [turn(c) ; r]."""
    q, latent, key_up, _ = draw(H=1, Dn=8, L=8)
    turn = rotation(torch.arange(5), 8, dtype=torch.float64)
    c = latent[..., :8]
    turned_after = rotate(torch.einsum("bitl,dl->bitd", c, key_up[0]), turn)
    turned_before = torch.einsum("bitl,dl->bitd", rotate(c, turn), key_up[0])
    assert (turned_after - turned_before).abs().max() > 0.1


def test_the_key_for_the_position_is_every_heads():
    _, latent, key_up, value_up = draw(H=3)
    k, v = expand_latent(latent, key_up, value_up)
    assert k.shape == (1, 3, 5, 10) and v.shape == (1, 3, 5, 5)
    assert all(torch.equal(k[:, h, :, 6:], latent[:, 0, :, 7:]) for h in range(3))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_does_not_go_together_is_refused_by_name(form):
    form = inspect.unwrap(form)  # without the shape checks that the tests add
    q, latent, key_up, value_up = draw(H=2)
    for arguments, message in [
        ((q, latent.expand(1, 2, 5, 11), key_up, value_up), "latent must be .*one head"),
        ((q, latent[..., :-1], key_up, value_up), r"latent must have L \+ R = 7 \+ 4 elements.*got 10"),
        ((q, latent, key_up[:1], value_up), "key_up must be .*H = 2"),
        ((q, latent, key_up, value_up[..., :3]), "value_up must be .*L = 7"),
        ((q[0], latent, key_up, value_up), "q must be"),
        ((q, latent, key_up[0], value_up), "key_up must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            form(*arguments)
    with pytest.raises(ValueError, match="scale must be a positive number"):
        form(q, latent, key_up, value_up, scale=0.0)
