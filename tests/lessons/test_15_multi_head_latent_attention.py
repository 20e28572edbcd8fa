"""Lesson 15: its checks stand their self-test, take right answers by other ways and reject wrong ones; its right
answers are the library's functions, over any sizes, and what a layer of the model keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.latent import absorbed_latent_attention, naive_latent_attention
from llmsys.cache import ContiguousCache
from llmsys.lessons.lesson_15_multi_head_latent_attention import plain, right
from llmsys.models import DeepSeek, DeepSeekConfig
from llmsys.moe import RouterConfig
from tests.lessons import answers_15
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, verdict


def answers(of):
    return [pytest.param(id, each, id=f"{id}-{each.__name__}") for id, some in of.items() for each in some]


@pytest.mark.parametrize("exercise", exercises_of("15"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


@pytest.mark.parametrize("exercise, answer", answers(answers_15.RIGHT))
def test_right_answers_by_other_ways_are_taken(exercise, answer):
    assert_taken(exercise, answer)


@pytest.mark.parametrize("exercise, answer", answers(answers_15.WRONG))
def test_wrong_answers_that_nobody_has_named_are_rejected(exercise, answer):
    assert_rejected(exercise, answer)


def test_the_librarys_own_are_refused():
    def expanded(*args, **options):
        return absorbed_latent_attention(*args, **options)

    def absorbed(*args, **options):
        return naive_latent_attention(*args, **options)

    for exercise, answer in (("15.expand", expanded), ("15.absorb", absorbed), ("15.keep", right.keep)):
        assert verdict(exercise, answer).failure.kind == "forbidden"


@pytest.mark.parametrize("exercise, name", [("15.absorb", "scale_of_the_latent"), ("15.keep", "turns_everything")])
def test_the_two_classic_mistakes_are_known_by_name(exercise, name):
    """Written in another way than the lesson's own."""

    def scale_of_the_latent(q, latent, key_up, value_up, *, causal=False, scale=None):
        scale = latent.shape[3] ** -0.5 if scale is None else scale
        return answers_15.absorbed_by_einsum(q, latent, key_up, value_up, causal=causal, scale=scale)

    def turns_everything(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
        made = answers_15.by_complex_numbers(x, down, weight, torch.zeros_like(positions), eps=eps)
        pairs = torch.view_as_complex(made.unflatten(-1, (-1, 2)).contiguous())
        angle = torch.outer(positions.float(), 1 / base ** (torch.arange(0, len(down), 2) / len(down)))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    found = verdict(exercise, locals()[name], name_mistakes=True)
    assert not found and found.misconception is not None, str(found)
    said = {"scale_of_the_latent": "√576", "turns_everything": "all L + R columns"}[name]
    assert said in found.misconception.message


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 5), st.integers(0, 2**32 - 1), st.data())
def test_both_right_forms_are_the_librarys(B, H, Tq, before, seed, data):
    L, R, Dn, Dv = (data.draw(st.integers(1, 9)) for _ in range(4))
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, Tq, Dn + R), (B, 1, before + Tq, L + R), (H, Dn, L), (H, Dv, L)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    options = {"causal": data.draw(st.booleans()), "scale": data.draw(st.sampled_from([None, 0.3]))}
    expected = naive_latent_attention(*tensors, **options)
    torch.testing.assert_close(right.attend_expanded(*tensors, **options), expected)
    torch.testing.assert_close(right.attend_absorbed(*tensors, **options), expected)


@pytest.mark.parametrize("keep", [right.keep, plain.kept])
def test_what_is_kept_is_what_a_layer_of_the_model_leaves_in_a_cache(keep):
    config = DeepSeekConfig(
        "tiny", 11, 16, 1, heads=2, head_size=6, mlp_size=8, context_length=32, rope_base=50.0, expert_size=4,
        router=RouterConfig(4, 2, "sigmoid", bias=True), dense_layers=(0,), latent_size=5, nope_size=4, value_size=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DeepSeek(config).eval()
    layer = model.layers[0]
    torch.nn.init.normal_(layer.latent_norm.weight)
    seen = []
    layer.latent_down.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    cache = ContiguousCache(capacity=9, spec=model.cache_spec())
    with torch.no_grad():
        for tokens in (torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6]])):
            model(tokens, cache)
        own = [
            keep(x, layer.latent_down.weight, layer.latent_norm.weight, positions, base=50.0)
            for x, positions in zip(seen, (torch.arange(4), torch.tensor([4, 5])), strict=True)
        ]
    kept = cache._keys[0].rows[:, :6] if cache._keys[0].rows.dim() == 3 else cache._keys[0].rows[0][:, :6]
    torch.testing.assert_close(torch.cat(own, dim=2)[0], kept, rtol=1e-4, atol=1e-5)
