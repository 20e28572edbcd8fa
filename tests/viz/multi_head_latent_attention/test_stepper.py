"""The pictures of lesson 15: their operations are those that a meter counts, their bytes those of tensors."""

import pytest
import torch

from llmsys.attention.latent import absorbed_latent_attention, naive_latent_attention
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.meters import work
from llmsys.models import DeepSeek
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.deepseek import DEEPSEEK_V2_LITE
from llmsys.models.shapes import SHAPES
from llmsys.viz.multi_head_latent_attention import overview, stepper
from llmsys.viz.multi_head_latent_attention.frame import describe, draw
from llmsys.viz.multi_head_latent_attention.products import (
    ABSORBED,
    DESIGNS,
    KEPT,
    NAIVE,
    Design,
    operations,
    products,
)


def design(way, H=3, L=8, R=4, Dn=6, Dv=5):
    return Design("tiny", way, 2, H, H, Dn + R, Dv, L, R)


@pytest.mark.parametrize("way, form", [(NAIVE, naive_latent_attention), (ABSORBED, absorbed_latent_attention)])
@pytest.mark.parametrize("B, T, n", [(1, 7, 1), (2, 5, 3)])
def test_operations_are_those_of_the_librarys_form(way, form, B, T, n):
    d = design(way)
    Dn = d.Dk - d.R
    with work() as done:
        form(
            torch.randn(B, 3, n, d.Dk), torch.randn(B, 1, T, d.L + d.R), torch.randn(3, Dn, d.L),
            torch.randn(3, d.Dv, d.L),
        )  # fmt: skip
    assert done.matmul_flops == sum(each.flops for each in products(d, batch=B, context=T, queries=n))


@pytest.mark.parametrize("d", DESIGNS, ids=lambda d: d.name)
def test_attention_reads_what_the_cache_has_of_a_layer_once(d):
    if d.way == NAIVE:
        return
    attention = next(op for op in operations(products(d, batch=2, context=11)) if op.name == "attention")
    assert attention.bytes == 2 * 11 * d.bytes_per_token / d.layers


def test_the_naive_form_writes_keys_and_values_and_reads_them_again():
    found = products(design(NAIVE), batch=2, context=7)
    made = 2 * 7 * 3 * (10 + 5) * 2
    assert sum(each.written for each in found) == made
    assert sum(each.read for each in found if each.part == "attention") == made


def test_the_designs_are_the_models():
    by_name = {d.name: d for d in DESIGNS}
    assert by_name["DeepSeek-V3, absorbed"].bytes_per_token == bytes_per_token(SHAPES["DeepSeek-V3"]) == 70_272
    assert by_name["Llama-3.1-405B, GQA"].bytes_per_token == bytes_per_token(SHAPES["Llama-3.1-405B"])
    with torch.device("meta"):
        lite = DeepSeek(DEEPSEEK_V2_LITE).to(torch.bfloat16)
    assert by_name["DeepSeek-V2-Lite, absorbed"].bytes_per_token == lite.cache_spec().bytes_per_token
    assert by_name["DeepSeek-V3, MHA"].way == KEPT and by_name["DeepSeek-V3, MHA"].numbers == 40_960


def test_128_heads_are_at_the_ridge_and_16_far_below():
    shown = stepper(batch=128, context=32_768)
    shown.go(2)
    assert shown.frame.attention.intensity == pytest.approx(242, abs=0.5)
    shown.set(design="DeepSeek-V2-Lite, absorbed")
    assert shown.frame.attention.intensity == pytest.approx(30.2, abs=0.1)
    shown.set(design="DeepSeek-V3, absorbed", queries=4)
    assert shown.frame.attention.intensity > 3 * DEVICES["H100 SXM"].flops_per_byte("bfloat16")


def test_every_frame_of_every_choice_can_be_drawn_and_said():
    shown = stepper()
    for d in DESIGNS:
        for batch, context, queries in ((1, 1024, 1), (128, 131_072, 4)):
            shown.set(design=d.name, batch=batch, context=context, queries=queries)
            for frame in shown.frames:
                assert draw(frame).alt == describe(frame)
                assert f"{d.bytes_per_token:,} bytes a token" in describe(frame)


def test_a_choice_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="batch must be one of"):
        stepper(batch=3)


def test_the_overview_says_in_words_what_it_shows():
    alt = overview().alt
    assert "keeps 576" in alt and "128 heads" in alt and "attends to the latents" in alt
