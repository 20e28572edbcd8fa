"""Against transformers, which shares nothing with ours: logits, greedy tokens, and checkpoints in both directions."""

import json
from dataclasses import replace

import pytest
import torch

from llmsys.cache import ContiguousCache, NoCache, PagedCache
from llmsys.models import DeepSeek, DeepSeekConfig, generate, load_model, save_model
from tests.models.deepseek.conftest import V3, VARIANTS, YARN, theirs

CLOSE = dict(atol=5e-5, rtol=5e-4)


@torch.no_grad()
def test_logits_are_transformers_in_both_forms_and_they_stay_when_it_is_saved_again(pair, tmp_path):
    other, path = pair
    ours = load_model(path)
    assert type(ours) is DeepSeek and isinstance(ours.config, DeepSeekConfig)
    tokens = torch.randint(3, 97, (2, 100))  # beyond YaRN's old context
    expected = other(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, **CLOSE)
    for layer in ours.layers:
        layer.form = "absorbed"
    torch.testing.assert_close(ours(tokens, NoCache(spec=ours.cache_spec())), expected, **CLOSE)

    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert replace(again.config, name=ours.config.name) == ours.config
    torch.testing.assert_close(again(tokens), load_model(path)(tokens), atol=0, rtol=0)
    again = type(other).from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(tokens).logits, expected, **CLOSE)


@torch.no_grad()
def test_with_any_cache_and_in_any_pieces_the_logits_are_the_same(tmp_path):
    other = theirs("v3, yarn")
    other.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = torch.randint(3, 97, (2, 37))
    expected = other(tokens).logits
    spec = ours.cache_spec()
    for cache in (
        ContiguousCache(capacity=40, spec=spec),
        PagedCache(capacity=40, block_size=5, spec=spec),
        PagedCache("triton", capacity=40, block_size=16, spec=spec),
    ):
        pieces = [ours(some, cache) for some in tokens.split([20, 1, 15, 1], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["v3", "v2, in groups"])
def test_greedy_tokens_are_transformers_with_any_attention(variant, tmp_path):
    other = theirs(variant)
    other.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompt = [5, 9, 60, 33, 8, 14, 71]
    expected = other.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 7:].tolist()
    for attention in ("naive", "tiled", "sdpa", "contiguous", "paged"):
        assert generate(ours, prompt, attention=attention, max_new_tokens=12).tokens == expected, attention


def test_in_bf16_the_error_is_at_most_twice_transformers_and_biases_stay_in_fp32(tmp_path):
    other = theirs("v3")
    other.save_pretrained(tmp_path)
    tokens = torch.randint(3, 97, (1, 20))
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    for i, moe in ours.mixtures.items():
        assert ours.dtype == torch.bfloat16 == moe.router.weight.dtype and moe.router.bias.dtype == torch.float32
        assert torch.equal(moe.router.bias, other.model.layers[i].mlp.gate.e_score_correction_bias)
    with torch.no_grad():
        exact = other(tokens).logits
        low = type(other).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()(tokens).logits
        assert (ours(tokens) - exact).abs().mean() <= 2 * (low - exact).abs().mean()


def edited(path, *, without=(), **settings):
    config = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps({key: x for key, x in config.items() if key not in without}))
    return path


class TestSettings:
    """The same model in other words, and what is no model of this kind."""

    @torch.no_grad()
    def test_what_is_left_out_means_what_it_means_to_transformers(self, tmp_path):
        """Sizes are those that V3's class has by default, but for the large ones."""
        more = dict(n_group=8, topk_group=4, num_experts_per_tok=8, n_routed_experts=16, n_shared_experts=1)
        other = theirs("v3", **more, first_k_dense_replace=3, num_hidden_layers=4, kv_lora_rank=512, q_lora_rank=1536)
        other.save_pretrained(tmp_path)
        names = """
            n_group topk_group num_experts_per_tok n_shared_experts first_k_dense_replace kv_lora_rank q_lora_rank
            norm_topk_prob routed_scaling_factor rope_interleave hidden_act rms_norm_eps dtype model_type
            num_nextn_predict_layers num_key_value_heads attention_bias tie_word_embeddings
        """
        tokens = torch.randint(3, 97, (1, 30))
        ours = load_model(edited(tmp_path, without=names.split()))
        torch.testing.assert_close(ours(tokens), other(tokens).logits, **CLOSE)

    def test_deepseeks_own_spellings_mean_the_same(self, tmp_path):
        theirs("v3, yarn").save_pretrained(tmp_path)
        config = load_model(tmp_path).config
        rope = YARN | {"type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.6}
        base = rope.pop("rope_theta"), rope.pop("rope_type")
        edited(
            tmp_path, without=["rope_parameters", "dtype"], rope_theta=base[0], rope_scaling=rope,
            torch_dtype="bfloat16", topk_method="noaux_tc", scoring_func="sigmoid", moe_layer_freq=1, ep_size=1,
            aux_loss_alpha=0.001, seq_aux=True, auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        )  # fmt: skip
        assert load_model(tmp_path).config == config

    def test_layers_that_predict_further_tokens_are_passed_over_and_others_are_not(self, tmp_path):
        from safetensors.torch import load_file, save_file

        theirs("v3").save_pretrained(tmp_path)
        edited(tmp_path, num_nextn_predict_layers=0)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        more = {
            "model.layers.3.eh_proj.weight": torch.zeros(48, 96),
            "model.layers.3.self_attn.kv_b_proj.weight": torch.zeros(88, 16),
        }
        save_file(tensors | more, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"layers\.3\.eh_proj.*has no place.*3 layers by num_hidden_layers"):
            load_model(tmp_path)
        tokens = torch.randint(3, 97, (1, 9))
        found = load_model(edited(tmp_path, num_nextn_predict_layers=1))(tokens)
        save_file(tensors, file, metadata={"format": "pt"})
        assert torch.equal(found, load_model(tmp_path)(tokens))

    @pytest.mark.parametrize(
        ("variant", "changes", "named"),
        [
            ("v3", {"topk_method": "greedy"}, "topk_method must be 'noaux_tc'.*got 'greedy'"),
            ("v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
            ("v2, greedy", {"topk_method": "best"}, "topk_method must be 'greedy' or 'group_limited_greedy'.*'best'"),
            ("v2, greedy", {"norm_topk_prob": True}, "norm_topk_prob must be false"),
            ("v3", {"n_group": 5}, "groups must divide"),
            ("v3", {"num_experts_per_tok": 7}, "k must be at most the 6 experts of the 2 groups"),
            ("v3", {"kv_lora_rank": 15}, r"kv_a_proj_with_mqa.weight must have shape \(23, 48\), by kv_lora_rank"),
            ("v3", {"qk_nope_head_dim": 11}, "q_b_proj.weight must have shape.*qk_nope_head_dim"),
            ("v3", {"q_lora_rank": None}, "q_proj.weight is missing"),
            ("v3", {"v_head_dim": 13}, "o_proj.weight must have shape.*v_head_dim"),
            ("v3", {"first_k_dense_replace": 2}, r"layers\.1\.mlp\.gate_proj\.weight is missing"),
            ("v3", {"num_hidden_layers": 4}, r"layers\.3.*is missing, of 4 layers"),
            ("v3", {"num_key_value_heads": 2}, "num_key_value_heads must be num_attention_heads, 4"),
            ("v3", {"qk_rope_head_dim": 7}, "qk_rope_head_dim must be even"),
            ("v3", {"attention_bias": True}, "attention_bias is on"),
            ("v3", {"moe_layer_freq": 2}, "moe_layer_freq must be 1"),
            ("v3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
            ("v3", {"quantization_config": {"quant_method": "fp8"}}, "FP8, with a scale for each 128 × 128.*fp8_cast"),
            ("v3, yarn", {"rope_parameters": YARN | {"attention_factor": 2.0}}, "attention_factor must be left out"),
            ("v3, yarn", {"rope_parameters": YARN | {"beta_slow": 9.0}}, "beta_fast must be above beta_slow"),
            ("v3, yarn", {"rope_parameters": YARN | {"factor": "4"}}, "factor must be a number"),
        ],
    )
    def test_a_wrong_setting_is_named_with_its_file(self, variant, changes, named, tmp_path):
        theirs(variant).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=named) as caught:
            load_model(edited(tmp_path, **changes))
        assert str(tmp_path) in str(caught.value)

    def test_a_missing_latent_weight_is_named(self, tmp_path):
        from safetensors.torch import load_file, save_file

        theirs("v3").save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["model.layers.1.self_attn.kv_a_layernorm.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.kv_a_layernorm\.weight is missing"):
            load_model(tmp_path)


def test_there_are_variants_of_every_way():
    ways = {(family, settings.get("topk_method")) for family, settings in VARIANTS.values()}
    assert {("V2", "greedy"), ("V2", "group_limited_greedy"), ("V3", None)} <= ways and "n_group" in V3
