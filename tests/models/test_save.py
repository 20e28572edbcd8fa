"""A model written and read again is the same model, for this library and for transformers."""

import json
from dataclasses import replace

import pytest
import torch

from llmsys.models import Llama, LlamaConfig, Tokenizer, generate, load_model, save_model

CONFIG = LlamaConfig(
    name="saved", vocab_size=61, hidden_size=24, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=40,
    context_length=64, rope_base=5e3, norm_eps=1e-5,
)  # fmt: skip
KINDS = {
    "tied": {},
    "untied": {"tied_embeddings": False},
    "normed heads": {"qk_norm": True, "head_size": 6, "kv_heads": 6},
    "stretched": {"rope_divisors": (4.0,) * 4},
}


def model_of(config):
    torch.manual_seed(1)
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_back_to_the_bit(tmp_path, kind, dtype):
    model = model_of(replace(CONFIG, **KINDS[kind])).to(dtype)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype=dtype)
    assert again.config == model.config
    tokens = torch.arange(40)[None]
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_it(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    model = model_of(replace(CONFIG, **KINDS[kind]))
    save_model(model, tmp_path)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


def test_a_context_stretched_by_llama3_comes_back_and_transformers_refuses_it(tmp_path):
    """Of how it was stretched, the divisors alone are known; a reader that does not know them must not go on."""
    transformers = pytest.importorskip("transformers")
    model = model_of(replace(CONFIG, rope_divisors=(1.0, 1.0, 2.5, 8.0)))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    tokens = torch.arange(40)[None]
    assert replace(again.config, name="saved") == model.config and torch.equal(again(tokens), model(tokens))
    with pytest.raises(KeyError, match="divisors"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_who_may_read_the_settings_may_read_the_weights(tmp_path):
    save_model(model_of(CONFIG), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_other_weights_in_place_of_its_own(tmp_path):
    model, other = model_of(CONFIG), model_of(CONFIG)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    save_model(model, tmp_path, weights=dict(other.named_parameters()))
    assert torch.equal(load_model(tmp_path).layers[1].gate_up.weight, other.layers[1].gate_up.weight)


class TestTokenizer:
    def test_smollm2s(self, smollm2, tmp_path):
        """From GGUF, where of its pattern only the name is known, to tokenizer.json."""
        small = Llama(replace(CONFIG, vocab_size=len(smollm2.tokenizer)), smollm2.tokenizer)
        save_model(small, tmp_path)
        again = load_model(tmp_path).tokenizer
        before = smollm2.tokenizer
        for text in ("def f(x):\n\treturn 1234.5 ** x  # Ünïcode 🙂\n\n", " leading", "<|im_start|>a<|endoftext|>", ""):
            assert again.encode(text) == before.encode(text)
            assert again.decode(before.encode(text)) == before.decode(before.encode(text))
        talk = [{"role": "user", "content": "Hello"}]
        assert again.chat(talk) == before.chat(talk)
        assert again.eos_ids == before.eos_ids and again.bos_id is None and again.end_of_text == 0
        assert (
            generate(small, "Hello", max_new_tokens=3).tokens
            == generate(load_model(tmp_path), "Hello", max_new_tokens=3).tokens
        )

    def test_transformers_reads_it(self, smollm2, tmp_path):
        transformers = pytest.importorskip("transformers")
        save_model(Llama(replace(CONFIG, vocab_size=len(smollm2.tokenizer)), smollm2.tokenizer), tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        text = "def f(x):\n    return 12 * x"
        assert theirs(text)["input_ids"] == smollm2.tokenizer.encode(text)
        talk = [{"role": "user", "content": "Hello"}]
        ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert ids == smollm2.tokenizer.chat(talk)

    def test_one_that_begins_each_text(self, smollm2, tmp_path):
        with_bos = Tokenizer(smollm2.tokenizer.core, eos_ids=[2, 0], bos_id=1)
        save_model(Llama(replace(CONFIG, vocab_size=len(with_bos)), with_bos), tmp_path)
        again = load_model(tmp_path).tokenizer
        assert again.bos_id == 1 and again.eos_ids == {0, 2} and again.chat_template is None
        assert again.encode("text") == with_bos.encode("text")
        assert with_bos.core.encode("text").ids == with_bos.encode("text")  # it was not changed
        assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [0, 2]}


@pytest.mark.parametrize("ends, found", [(["<|endoftext|>", "</s>"], 1), (["</s>"], 1), (["other"], 7), ([], 7)])
def test_the_end_of_a_text_is_not_the_end_of_a_turn(ends, found):
    import tokenizers

    vocabulary = {"a": 0} | {name: i for i, name in enumerate(ends, 1)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    assert Tokenizer(core, eos_ids=[7, 9]).end_of_text == found
    assert Tokenizer(core).end_of_text == (found if found == 1 else None)


class TestOverAnother:
    """What was saved is what is read, whatever was in the directory before."""

    TOKENS = torch.arange(40)[None]

    def test_a_checkpoint_in_several_files(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        model = model_of(CONFIG)
        save_model(model, tmp_path)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="10KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
        model.norm.weight.mul_(3.0)
        save_model(model, tmp_path)
        assert torch.equal(load_model(tmp_path)(self.TOKENS), model(self.TOKENS))
        assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]

    def test_the_one_it_was_loaded_from(self, tmp_path):
        """Its weights are still in that file: they are read when they are used."""
        model = model_of(CONFIG)
        save_model(model, tmp_path)
        again = load_model(tmp_path)
        save_model(again, tmp_path)
        assert torch.equal(again(self.TOKENS), model(self.TOKENS))
        assert torch.equal(load_model(tmp_path)(self.TOKENS), model(self.TOKENS))

    def test_one_with_another_tokenizer(self, smollm2, tmp_path):
        (tmp_path / "chat_template.jinja").write_text("another")
        (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_start|>", "bos_token": "<|im_start|>"}')
        (tmp_path / "added_tokens.json").write_text('{"<another>": 49152}')
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
        save_model(Llama(replace(CONFIG, vocab_size=49152), Tokenizer(smollm2.tokenizer.core)), tmp_path)
        again = load_model(tmp_path).tokenizer
        assert again.chat_template is None and again.special == {} and len(again) == 49152
        assert again.eos_ids == frozenset() and again.bos_id is None

    def test_nothing_is_left_of_a_write_that_fails(self, tmp_path, monkeypatch):
        model = model_of(CONFIG)
        save_model(model, tmp_path)

        def full(tensors, file, metadata):
            file.write_bytes(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr("llmsys.models.checkpoints.save.save_file", full)
        with pytest.raises(OSError, match="no space"):
            save_model(model, tmp_path)
        assert torch.equal(load_model(tmp_path)(self.TOKENS), model(self.TOKENS))
        assert not list(tmp_path.glob("*.writing"))


class TestWrapped:
    """A compiled model is saved as the model that it was made of."""

    def test_compiled(self, tmp_path):
        model = model_of(CONFIG)
        compiled = torch.compile(model, backend="eager")
        save_model(compiled, tmp_path, weights=dict(compiled.named_parameters()))
        assert torch.equal(load_model(tmp_path)(torch.arange(9)[None]), model(torch.arange(9)[None]))

    def test_one_layer_compiled(self, tmp_path):
        model = model_of(CONFIG)
        expected = model(torch.arange(9)[None])
        model.layers.add_module("1", torch.compile(model.layers[1], backend="eager"))
        assert any("_orig_mod" in name for name, _ in model.named_parameters())
        save_model(model, tmp_path)
        assert torch.equal(load_model(tmp_path)(torch.arange(9)[None]), expected)


def test_roles_of_tokens_come_back(tmp_path, smollm2):
    special = {"bos_token": "<|im_start|>", "image_token": "<repo_name>", "part": "<file_sep>"}
    tokenizer = Tokenizer(smollm2.tokenizer.core, eos_ids=[2], special=special, chat_template="{{ part }}")
    save_model(Llama(replace(CONFIG, vocab_size=len(tokenizer)), tokenizer), tmp_path)
    again = load_model(tmp_path).tokenizer
    assert again.special == special and again.render([{"role": "user", "content": ""}]) == "<file_sep>"
