"""Shapes of real models: their weights add up to what transformers counts, and to what the makers publish."""

import pytest
import torch

from llmsys.models import Llama, LlamaConfig
from llmsys.models.shapes import SHAPES, Experts, ModelShape, config_of, shape_of

PUBLISHED = {
    "SmolLM2-135M": 134_515_008, "Qwen3-0.6B": 596_049_920, "Llama-2-7B": 6_738_415_616, "Falcon-7B": 6_921_716_160,
    "Llama-3-8B": 8_030_261_248, "Qwen2.5-72B": 72_706_203_648, "Llama-3.1-405B": 405_853_388_800,
    "DeepSeek-V3": 671_026_419_200,
}  # fmt: skip
FAMILIES = {"Qwen3-0.6B": "Qwen3", "Qwen2.5-72B": "Qwen2"}
DEFAULTS = {"Falcon-7B": "Falcon", "DeepSeek-V3": "DeepseekV3"}  # of which transformers' own defaults are the sizes


def on_meta(family: str, **sizes):
    """transformers' model of a family, without memory."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = getattr(transformers, f"{family}Config")(**sizes)
        return getattr(transformers, f"{family}ForCausalLM")(config)


def test_all_weights_are_the_published_number_of_parameters_the_smallest_model_first():
    found = {name: shape.parameters for name, shape in SHAPES.items()}
    assert found == PUBLISHED
    assert list(found.values()) == sorted(found.values())


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - DEFAULTS.keys()))
def test_transformers_counts_as_many_weights_in_a_model_of_these_sizes(name):
    shape = SHAPES[name]
    model = on_meta(
        FAMILIES.get(name, "Llama"), vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters


def test_falcon_and_deepseek_are_as_transformers_has_them():
    falcon = on_meta("Falcon")
    assert sum(weight.numel() for weight in falcon.parameters()) == SHAPES["Falcon-7B"].parameters + 4544
    deepseek = on_meta("DeepseekV3")
    shape, theirs = SHAPES["DeepSeek-V3"], deepseek.config
    router_bias = (shape.layers - shape.experts.dense_layers) * shape.experts.routed  # a buffer there
    assert sum(weight.numel() for weight in deepseek.parameters()) + router_bias == shape.parameters
    assert (theirs.kv_lora_rank, theirs.qk_rope_head_dim) == (shape.latent.kv_rank, shape.latent.rope_dim)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_of_a_model_has_its_weights_and_makes_the_same_model_again(qk_norm, tied):
    config = LlamaConfig("tiny", 37, 24, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=40, context_length=64,
                         qk_norm=qk_norm, tied_embeddings=tied)  # fmt: skip
    model, shape = Llama(config), shape_of(config)
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters
    assert config_of(shape, context_length=64) == config


def test_a_bias_and_two_matrices_in_place_of_three_are_counted():
    plain = ModelShape("tiny", 2, 16, heads=4, kv_heads=2, head_dim=8, ffn=32, vocab=64)
    biased = ModelShape("tiny", 2, 16, heads=4, kv_heads=2, head_dim=8, ffn=32, vocab=64, qkv_bias=True)
    ungated = ModelShape("tiny", 2, 16, heads=4, kv_heads=2, head_dim=8, ffn=32, vocab=64, gated=False)
    assert biased.parameters - plain.parameters == 2 * (4 + 2 * 2) * 8
    assert plain.parameters - ungated.parameters == 2 * 16 * 32


@pytest.mark.parametrize(
    ("shape", "has"),
    [(SHAPES["DeepSeek-V3"], "latent attention"), (SHAPES["Qwen2.5-72B"], "biases"),
     (SHAPES["Falcon-7B"], "an MLP without a gate"),
     (ModelShape("tiny", 2, 16, 2, 2, 8, 32, 64, experts=Experts(4, 2, 0, 8, 0)), "experts")],
)  # fmt: skip
def test_what_is_no_llama_is_not_made_into_one(shape, has):
    with pytest.raises(ValueError, match=f"{shape.name} has {has}"):
        config_of(shape, context_length=64)
