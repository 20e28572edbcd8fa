"""What a GGUF file's settings mean, also where they are missing: as llama.cpp reads them (src/llama-vocab.cpp there,
src/llama-model.cpp, src/llama-model-loader.cpp)."""

from dataclasses import replace

import pytest
import torch

from llmsys.models import Llama, Tokenizer, load_model
from tests.models.gguf_files import CONFIG, LETTERS, SETTINGS, tensors_of, tiny_model, write

TOKENS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def load(tmp_path, model):
    """The model of a file with these settings in place of the usual ones, and further tensors."""

    def load(settings=None, **tensors):
        file = write(tmp_path / "tiny.gguf", SETTINGS | (settings or {}), tensors_of(model) | tensors)
        return load_model(file)

    return load


def with_divisors(model, *divisors):
    other = Llama(replace(CONFIG, rope_divisors=divisors)).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    return other


def test_it_is_the_model_that_was_written(load, model):
    assert torch.equal(load()(TOKENS), model(TOKENS))


class TestRope:
    @pytest.mark.parametrize(
        "settings, factor",
        [
            ({"scaling.type": "linear", "scaling.factor": 4.0}, 4.0),
            ({"scaling.factor": 4.0}, 4.0),
            ({"scale_linear": 4.0}, 4.0),
            ({"scaling.factor": 2.0, "scale_linear": 4.0}, 2.0),
            ({"scaling.factor": 0.0}, 1.0),
            ({"scaling.type": "none", "scaling.factor": 4.0}, 1.0),
            ({"scaling.type": "linear"}, 1.0),
        ],
    )
    def test_linear_scaling_in_all_its_spellings(self, load, model, settings, factor):
        got = load({f"llama.rope.{key}": value for key, value in settings.items()})
        torch.testing.assert_close(got(TOKENS), with_divisors(model, *(factor,) * 4)(TOKENS))

    def test_a_tensor_of_divisors_and_a_factor_multiply(self, load, model):
        divisors = torch.tensor([1.0, 1.5, 3.0, 8.0])
        got = load({"llama.rope.scaling.factor": 2.0}, **{"rope_freqs.weight": divisors})
        torch.testing.assert_close(got(TOKENS), with_divisors(model, *(2 * divisors).tolist())(TOKENS))

    @pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic"])
    def test_another_scaling_is_refused(self, load, kind):
        with pytest.raises(ValueError, match=rf"tiny.gguf: llama.rope.scaling.type: .*{kind}.*linear and llama3"):
            load({"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 2.0})

    def test_divisors_that_are_none(self, load):
        for divisors in (torch.ones(3), torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, 1.0])):
            with pytest.raises(ValueError, match="rope_freqs.weight|rope_divisors"):
                load(**{"rope_freqs.weight": divisors})


class TestSizes:
    def test_one_for_each_layer_if_they_are_the_same(self, load, model):
        sizes = {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2], "feed_forward_length": [48, 48]}
        got = load({f"llama.{key}": value for key, value in sizes.items()})
        assert torch.equal(got(TOKENS), model(TOKENS))
        with pytest.raises(ValueError, match=r"tiny.gguf: llama.attention.head_count_kv must be .* got \[2, 1\]"):
            load({"llama.attention.head_count_kv": [2, 1]})

    @pytest.mark.parametrize(
        "key, value",
        [("attention.value_length", 16), ("rope.dimension_count", 4), ("expert_count", 8), ("block_count", 3)],
    )
    def test_what_this_model_is_not_is_refused_by_name(self, load, key, value):
        with pytest.raises(ValueError, match=f"tiny.gguf: .*llama.{key}"):
            load({f"llama.{key}": value})


class TestTokens:
    def tokenizer(self, names, **settings):
        values = {"model": "gpt2", "pre": "gpt-2", "tokens": [*LETTERS, *names], "merges": []} | settings
        values = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
        return Tokenizer.from_gguf(values, "some.gguf")

    @pytest.mark.parametrize("name", ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"])
    def test_usual_ends_of_a_turn_are_found_by_their_text(self, name):
        tokenizer = self.tokenizer(["<|other|>", name], eos_token_id=256)
        assert tokenizer.eos_ids == {256, 257}
        assert tokenizer.encode(f"a{name}") == [tokenizer.encode("a")[0], 257]  # a token, whatever its type
        assert tokenizer.decode([257]) == ""

    def test_an_end_that_the_settings_name_needs_no_usual_text(self):
        names = ["<stop>", "<turn>", "<call>", "<none>"]
        assert self.tokenizer(names, eos_token_id=256, eot_token_id=257, eom_token_id=258).eos_ids == {256, 257, 258}

    def test_an_end_of_a_part_of_the_turn_is_none(self):
        assert self.tokenizer(["<|end|>", "<|return|>", "<|call|>"]).eos_ids == {257, 258}

    @pytest.mark.parametrize(
        "pre, add, found",
        [
            ("gpt-2", None, None), ("gpt-2", True, 256), ("gpt-2", False, None), ("qwen2", None, None),
            ("smollm", None, None), ("llama-bpe", None, 256), ("llama3", None, 256), ("llama-v3", None, 256),
            ("llama-bpe", False, None), ("llama-bpe", True, 256),
        ],
    )  # fmt: skip
    def test_which_token_begins_a_text(self, pre, add, found):
        assert self.tokenizer(["<s>"], pre=pre, bos_token_id=256, add_bos_token=add).bos_id == found

    def test_minus_one_is_no_token(self):
        tokenizer = self.tokenizer(["<s>"], bos_token_id=0xFFFFFFFF, eos_token_id=-1, pre="llama-bpe")
        assert tokenizer.bos_id is None and tokenizer.eos_ids == frozenset() and tokenizer.special == {}

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"bos_token_id": 257}, r"tokenizer.ggml.bos_token_id must be a token's id, from 0 to 256 by .*, got 257"),
            ({"eot_token_id": 1.5}, "tokenizer.ggml.eot_token_id must be a token's id"),
            ({"add_bos_token": True}, "tokenizer.ggml.add_bos_token is on, and tokenizer.ggml.bos_token_id names no"),
            ({"token_type": [1, 3]}, "tokenizer.ggml.token_type must be one for each of the 257 tokens, got 2"),
            ({"tokens": ["a", "b", "a"]}, "tokenizer.ggml.tokens holds 'a' twice"),
            ({"tokens": []}, "tokenizer.ggml.tokens must be a list of at least one text"),
            ({"merges": ["a"]}, "tokenizer.ggml.merges do not go with tokenizer.ggml.tokens"),
            ({"pre": "default"}, "tokenizer.ggml.pre is 'default'; known are smollm"),
        ],
    )
    def test_what_cannot_be_is_refused_by_file_and_key(self, settings, message):
        with pytest.raises(ValueError, match=f"some.gguf: {message}"):
            self.tokenizer(["<s>"], **settings)

    def test_an_empty_token_keeps_its_place(self):
        assert self.tokenizer(["", "<s>"], eos_token_id=257).core.token_to_id("<s>") == 257


class TestParts:
    """A file in several: all are read, and one alone is no model."""

    @pytest.fixture
    def parts(self, tmp_path, model):
        tensors = list(tensors_of(model).items())
        files = [tmp_path / f"tiny-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
        for i, file in enumerate(files):
            own = {"split.no": i, "split.count": 3, "split.tensors.count": len(tensors)}
            write(file, (SETTINGS if i == 0 else {}) | own, dict(tensors[i * 9 : None if i == 2 else i * 9 + 9]))
        return files

    def test_together(self, parts, model):
        assert torch.equal(load_model(parts[0])(TOKENS), model(TOKENS))

    def test_one_is_missing(self, parts):
        parts[2].unlink()
        with pytest.raises(ValueError, match=r"tiny-00003-of-00003.gguf: no such file, and .* is one part of 3"):
            load_model(parts[0])

    def test_another_than_the_first(self, parts):
        with pytest.raises(ValueError, match=r"not the first part of 3 .*; give load_model tiny-00001-of-00003.gguf"):
            load_model(parts[1])

    def test_under_another_name(self, parts):
        with pytest.raises(ValueError, match=r"model.gguf: this is one part of 3 .* end in -00001-of-00003.gguf"):
            load_model(parts[0].rename(parts[0].with_name("model.gguf")))

    def test_two_that_do_not_belong_together(self, parts):
        parts[1].write_bytes(parts[2].read_bytes())
        with pytest.raises(ValueError, match=r"tiny-00002-of-00003.gguf: must be part 2 of 3"):
            load_model(parts[0])


def test_what_is_there_twice_is_refused(tmp_path, model):
    file = write(tmp_path / "tiny.gguf", SETTINGS, tensors_of(model))
    data = file.read_bytes()
    file.write_bytes(data.replace(b"blk.1.attn_k.weight", b"blk.0.attn_k.weight"))
    with pytest.raises(ValueError, match="the tensor blk.0.attn_k.weight is there twice"):
        load_model(file)
    file.write_bytes(data.replace(b"general.alignment", b"llama.block_count"))
    with pytest.raises(ValueError, match="the setting llama.block_count is there twice"):
        load_model(file)
