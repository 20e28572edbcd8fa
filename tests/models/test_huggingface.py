"""Hugging Face directories: settings in all their spellings, and what is refused, how (logits: the file beside)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmsys.models import load_model

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize("kv_heads, rope", [(6, LLAMA3), (1, LINEAR)])
def test_stretched_contexts_turn_as_transformers_turns_them(tmp_path, write_checkpoint, kv_heads, rope):
    theirs = write_checkpoint(tmp_path, num_key_value_heads=kv_heads, rope_parameters=rope)
    tokens = torch.randint(0, 97, (1, 100))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path)(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


def test_older_config_keys_mean_the_same(tmp_path, write_checkpoint):
    write_checkpoint(tmp_path, rope_parameters=LLAMA3)
    config = load_model(tmp_path).config
    settings = json.loads((tmp_path / "config.json").read_text())
    rope = settings.pop("rope_parameters")
    settings["rope_theta"] = rope.pop("rope_theta")
    settings["rope_scaling"] = {"type": rope.pop("rope_type")} | rope
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_model(tmp_path).config == config


def test_bfloat16_weights_stay_what_they_are(tmp_path, write_checkpoint):
    model = write_checkpoint(tmp_path).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert torch.equal(ours.layers[1].down.weight, model.model.layers[1].mlp.down_proj.weight)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():  # the rule for low precision: no further from fp32 than twice the peer
        exact = load_model(tmp_path)(tokens)
        theirs = (model(tokens).logits - exact).abs().max()
        assert (ours(tokens) - exact).abs().max() <= 2 * theirs


@pytest.fixture(scope="module")
def saved(tmp_path_factory, write_checkpoint):
    path = tmp_path_factory.mktemp("saved")
    write_checkpoint(path, num_hidden_layers=2)
    return path


class TestRefusals:
    """Each names the file, the thing, and what to do."""

    @pytest.fixture
    def directory(self, saved, tmp_path):
        return shutil.copytree(saved, tmp_path / "model")

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"hidden_act": "gelu"}, "config.json: hidden_act is 'gelu'"),
            ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "scaled by 'yarn'.*linear and llama3"),
            ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "its low_freq_factor is missing"),
            ({"num_hidden_layers": None}, "setting num_hidden_layers is missing"),
            ({"num_key_value_heads": 4}, "config.json: num_attention_heads must be a multiple of num_key_value_heads"),
            ({"vocab_size": 96}, r"embed_tokens.weight must have shape \(96, 48\).*got \(97, 48\)"),
            ({"num_hidden_layers": 1}, r"model.layers.1.input_layernorm.weight .* has no place"),
        ],
    )
    def test_settings(self, directory, settings, message):
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        with pytest.raises(ValueError, match=message):
            load_model(directory)

    def test_missing_tensor(self, directory):
        weights = load_file(directory / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, directory / "model.safetensors")
        with pytest.raises(ValueError, match=r"the tensor model.layers.1.mlp.up_proj.weight is missing"):
            load_model(directory)

    def test_a_bias_would_be_ignored(self, directory):
        weights = load_file(directory / "model.safetensors")
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
        save_file(weights, directory / "model.safetensors")
        with pytest.raises(ValueError, match=r"q_proj.bias .* has no place"):
            load_model(directory)

    def test_missing_shard(self, tmp_path, write_checkpoint):
        write_checkpoint(tmp_path, num_hidden_layers=2, max_shard_size="40KB")
        shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{shard.name}: no such file"):
            load_model(tmp_path)

    def test_a_tokenizer_that_is_none(self, directory):
        (directory / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
            load_model(directory)


class TestSpellings:
    """Settings in older and rarer spellings, and which of two comes first: as in transformers."""

    LLAMA3_OLD = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

    @pytest.mark.parametrize(
        "settings",
        [
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1e3},
            {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 4.0}},
            {"rope_scaling": {"factor": 4.0}, "rope_theta": 1e3},
            {"rope_scaling": None, "rope_theta": 1e3},
            {"rope_scaling": {}, "rope_parameters": LINEAR},
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": LINEAR, "rope_theta": 7e3},
            {"rope_scaling": LLAMA3_OLD, "rope_theta": 1e3},
            {"rope_scaling": LLAMA3_OLD, "original_max_position_embeddings": 64},
            {"rope_scaling": LLAMA3_OLD | {"original_max_position_embeddings": 16}, "max_position_embeddings": 256},
            {"rope_parameters": LINEAR, "rope_theta": 7e3},
            {"rope_parameters": {"rope_type": "default"}},
            {"rope_parameters": None},
            {"architectures": None},
            {"hidden_act": "swish"},
            {"head_dim": None},
            {"layer_types": ["full_attention"] * 2},
        ],
    )
    def test_they_mean_what_they_mean_to_transformers(self, saved, tmp_path, settings):
        transformers = pytest.importorskip("transformers")
        directory = shutil.copytree(saved, tmp_path / "model")
        file = directory / "config.json"
        before = {key: value for key, value in json.loads(file.read_text()).items() if key != "rope_parameters"}
        file.write_text(json.dumps(before | settings))
        tokens = torch.arange(90)[None]
        with torch.inference_mode():
            expected = transformers.AutoModelForCausalLM.from_pretrained(directory)(tokens).logits
            torch.testing.assert_close(load_model(directory)(tokens), expected, atol=2e-4, rtol=1e-4)

    def test_what_qwen3_has_where_a_key_is_missing(self, tmp_path, write_checkpoint):
        theirs = write_checkpoint(
            tmp_path, "qwen3", num_hidden_layers=1, head_dim=128, num_attention_heads=32, num_key_value_heads=32
        )
        file = tmp_path / "config.json"
        settings = json.loads(file.read_text())
        del settings["head_dim"], settings["num_key_value_heads"]
        file.write_text(json.dumps(settings))
        tokens = torch.arange(20)[None]
        with torch.inference_mode():
            torch.testing.assert_close(load_model(tmp_path)(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by 'dynamic', by rope_scaling.type"),
            ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope', by rope_scaling.rope_type"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
            ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is there"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be 'full_attention' for each"),
            ({"model_type": "mistral"}, "model_type is 'mistral', and architectures says LlamaForCausalLM"),
            ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta must be a number of at least 1"),
            ({"num_hidden_layers": 10**30}, "layers.2.input_layernorm.weight is missing, of 10+ layers by num_hidden"),
            ({"intermediate_size": 10**30}, "gate_proj.weight must have shape .* by intermediate_size in config.json"),
        ],
    )
    def test_what_this_model_cannot_do_is_refused_by_file_and_key(self, saved, tmp_path, settings, message):
        directory = shutil.copytree(saved, tmp_path / "model")
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        with pytest.raises(ValueError, match=message) as refused:
            load_model(directory)
        assert str(directory) in str(refused.value)
