"""Checkpoints of mixtures of experts: read as transformers reads them, written so that it reads them."""

import json
from dataclasses import replace

import pytest
import torch

from llmsys.models import MixtureConfig, MixtureLlama, generate, load_model, save_model
from llmsys.moe import RouterConfig
from llmsys.serving import Engine, SamplingParams
from tests.models.mixture.conftest import VARIANTS, theirs

CLOSE = dict(atol=5e-5, rtol=5e-4)


@torch.no_grad()
def test_logits_are_transformers_and_they_stay_when_it_is_saved_again(pair, tmp_path):
    other, path = pair
    ours = load_model(path)
    assert isinstance(ours, MixtureLlama) and isinstance(ours.config, MixtureConfig)
    tokens = torch.randint(3, 97, (2, 37))
    expected = other(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, **CLOSE)

    save_model(ours, tmp_path / "ours")
    torch.testing.assert_close(load_model(tmp_path / "ours")(tokens), ours(tokens), atol=0, rtol=0)
    assert replace(load_model(tmp_path / "ours").config, name=ours.config.name) == ours.config
    again = type(other).from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(tokens).logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["qwen3_moe", "dots1"])
def test_generate_and_the_engine_say_what_transformers_says(variant, tmp_path):
    other = theirs(variant)
    other.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    prompts = [[5, 9, 60, 33, 8, 14, 71], [40, 3, 4], list(range(20, 61))]
    expected = []
    for prompt in prompts:
        found = other.generate(
            torch.tensor([prompt]), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        expected.append(found[0, len(prompt) :].tolist())
        assert generate(ours, prompt, max_new_tokens=9).tokens == expected[-1]
    engine = Engine(ours)
    outputs = engine.generate(prompts, SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True))
    assert [output.tokens for output in outputs] == expected


def test_a_bias_stays_in_fp32_where_the_model_is_in_bf16(tmp_path):
    other = theirs("dots1")
    other.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    for i, moe in ours.mixtures.items():
        assert ours.dtype == torch.bfloat16 == moe.router.weight.dtype and moe.router.bias.dtype == torch.float32
        assert torch.equal(moe.router.bias, other.model.layers[i].mlp.gate.e_score_correction_bias)


@pytest.mark.parametrize(
    ("variant", "changes", "named"),
    [
        ("dots1", {"n_group": 5}, "groups must divide"),
        ("dots1", {"moe_intermediate_size": 23}, "moe_intermediate_size in config.json"),
        ("dots1", {"n_shared_experts": 3}, "n_shared_experts"),
        ("dots1", {"n_routed_experts": 16, "n_group": 4}, r"experts.*missing|n_routed_experts"),
        ("dots1", {"first_k_dense_replace": 4}, "dense_layers"),
        ("qwen3_moe", {"num_experts": 6, "num_local_experts": 6}, "gate.weight must have shape.*num_experts"),
        ("qwen3_moe", {"num_experts_per_tok": 8}, "k must be"),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}, "mlp_only_layers must be a list of whole numbers"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("mixtral", {"sliding_window": 64}, "sliding_window must be null"),
        ("mixtral", {"num_local_experts": 4}, "gate.weight must have shape.*num_local_experts"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(variant, changes, named, tmp_path):
    theirs(variant).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=named) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_what_transformers_has_no_words_for_is_refused_before_anything_is_written(tmp_path):
    config = MixtureConfig(
        "odd", 31, 12, 2, heads=2, kv_heads=1, head_size=6, mlp_size=8, context_length=16,
        router=RouterConfig(4, 2, "sigmoid"), expert_size=5,
    )  # fmt: skip
    with pytest.raises(ValueError, match="config must be Mixtral's"):
        save_model(MixtureLlama(config), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_there_is_a_variant_of_each_layout():
    assert {name.split(",")[0] for name in VARIANTS} == {"mixtral", "qwen3_moe", "dots1"}
