"""Whatever a setting holds: the model that transformers makes of it, or an error that names the file and the key."""

import json
import math
import random
import shutil
from functools import partial

import pytest
import tokenizers
import torch

from llmsys.hardware.tier import load_triton, triton_installed
from llmsys.models import Tokenizer, load_model
from tests.models.gguf_files import SETTINGS, tensors_of, tiny_model, write
from tests.support.size import FULL, SEED

if triton_installed():
    load_triton()  # transformers' model classes import Triton, too, and the first import decides its mode
transformers = pytest.importorskip("transformers")

VALUES = [
    None, True, False, -1, 0, 1, 2, 0.5, -1.5, 1e309, math.nan, 10**30, 10**400, "", "x", "1", "true", [], {}, [None],
    [1, 2], ["x"], {"a": 1},
]  # fmt: skip
TOKENS = torch.arange(30)[None]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e3, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}
BEYOND = (  # keys that this config.json lacks, and others have
    "rope_scaling", "rope_theta", "partial_rotary_factor", "quantization_config", "layer_types", "use_sliding_window",
    "sliding_window", "original_max_position_embeddings", "torch_dtype", "tokenizer_class",
)  # fmt: skip


def drawn(cases, short):
    """All cases in the full form, else `short` of them, drawn by the date."""
    cases = list(cases)
    return cases if FULL else random.Random(SEED).sample(cases, min(short, len(cases)))


def refusal(load, file, key):
    """What `load` makes, and None; or None and what is wrong with the error, "" where it is as it should be."""
    try:
        return load(), None
    except (ValueError, OSError) as error:
        named = str(file) in str(error) and key in str(error)
        return None, "" if named else f"unnamed: {error}"
    except Exception as error:  # what this test is about
        return None, f"{type(error).__name__}: {error}"


def report(wrong):
    return "\n".join(str(each)[:300] for each in wrong[:30])


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def saved(request, tmp_path_factory, write_checkpoint):
    path = tmp_path_factory.mktemp("saved")
    write_checkpoint(path, request.param, num_hidden_layers=2)
    return path


@pytest.fixture(scope="module")
def whole():
    """A tokenizer.json: bytes, and a token before each text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    core.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return json.loads(core.to_str())


class TestConfig:
    NO_MATTER = {  # keys that we do not read, for they change nothing
        "attention_dropout", "bos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_range", "use_cache",
        "transformers_version", "tokenizer_class", "pretraining_tp", "sliding_window", "max_window_layers",
        "model_type", "architectures",
    }  # fmt: skip

    def cases(self, saved):
        """(the key, the whole of config.json with a value under it)"""
        base = json.loads((saved / "config.json").read_text())
        for value in VALUES:
            for key in [*base, *BEYOND]:
                yield key, base | {key: value}
            for rope in (LLAMA3, LINEAR):
                for key in [*rope, "type", "partial_rotary_factor", "full_attention"]:
                    yield key, base | {"rope_parameters": rope | {key: value}}

    @torch.inference_mode()
    def test_config_json(self, saved, tmp_path):
        directory = shutil.copytree(saved, tmp_path / "model")
        file = directory / "config.json"
        usual, wrong, compared = load_model(directory)(TOKENS), [], 0
        for key, settings in drawn(self.cases(saved), 120):
            file.write_text(json.dumps(settings))
            model, complaint = refusal(partial(load_model, directory), file.name, key)
            if complaint:
                wrong.append((key, settings.get(key), complaint))
            if model is None or (not FULL and compared == 10):
                continue
            compared += 1
            if not torch.allclose(model(TOKENS), self.logits_of_theirs(directory, key, usual), atol=2e-4, rtol=1e-3):
                wrong.append((key, settings.get(key), "another model"))
        assert compared and not wrong, report(wrong)

    def logits_of_theirs(self, directory, key, usual):
        """transformers' logits. Where it refuses a value that we take: those of the same, said in its way."""
        try:
            return transformers.AutoModelForCausalLM.from_pretrained(directory)(TOKENS).logits
        except Exception:
            if key in self.NO_MATTER:
                return usual
        settings = json.loads((directory / "config.json").read_text())
        rope = settings.get("rope_parameters") or {}
        settings["rope_parameters"] = {
            name: float(value) if isinstance(value, int) else value  # beyond 64 bits, too
            for name, value in rope.items()
            if value is not None and name != "full_attention"
        }
        if "rope_theta" in settings:
            settings["rope_theta"] = float(settings["rope_theta"] or 10_000)
        settings = {name: value for name, value in settings.items() if value is not None}  # null: as if left out
        settings["rms_norm_eps"] = float(settings.get("rms_norm_eps", 1e-6))
        (directory / "config.json").write_text(json.dumps(settings))
        return transformers.AutoModelForCausalLM.from_pretrained(directory)(TOKENS).logits

    def test_generation_config_json(self, saved, tmp_path):
        directory = shutil.copytree(saved, tmp_path / "model")
        core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
        core.save(str(directory / "tokenizer.json"))
        file, wrong = directory / "generation_config.json", []
        for key in ("eos_token_id", "temperature", "max_length"):
            for value in VALUES:
                file.write_text(json.dumps({"eos_token_id": 2} | {key: value}))
                model, complaint = refusal(partial(load_model, directory), file.name, key)
                if complaint:
                    wrong.append((key, value, complaint))
                if model is not None:
                    ends = json.loads(file.read_text())["eos_token_id"]
                    ends = 2 if ends is None else ends  # config.json's
                    assert model.tokenizer.eos_ids == set(ends if isinstance(ends, list) else [ends])
        assert not wrong, report(wrong)

    def test_the_index(self, tmp_path, write_checkpoint):
        write_checkpoint(tmp_path, num_hidden_layers=1, max_shard_size="40KB")
        file = tmp_path / "model.safetensors.index.json"
        base = json.loads(file.read_text())
        some, wrong = next(iter(base["weight_map"])), []
        contents = [(key, base | {key: value}) for key in ("metadata", "weight_map", "more") for value in VALUES]
        contents += [(some, base | {"weight_map": base["weight_map"] | {some: value}}) for value in VALUES]
        contents += [("", value) for value in VALUES]
        for name in ("/etc/passwd", "../x.safetensors", "a\0b", "x" * 300 + ".safetensors", "y.safetensors"):
            contents.append((some if "y" not in name[:1] else "y.safetensors", base | {"weight_map": {some: name}}))
        for key, content in contents:
            file.write_text(json.dumps(content))
            _, complaint = refusal(partial(load_model, tmp_path), file.name, key)
            if complaint:
                wrong.append((key, content, complaint))
        assert not wrong, report(wrong)


class TestTokenizer:
    """A directory's tokenizer: what it makes of a text and of a conversation is what transformers' makes of them."""

    TEMPLATE = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}{{ extra_token }}"
    TOKENS = [
        258, "<s>", "<new>", {"content": "<s>"}, {"content": 5}, {"content": "<s>", "lstrip": "x"},
        {"content": "<new>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False},
        [{"name": "default", "template": "T"}], {"default": "T"}, {"258": {"content": "<new>"}},
        {"300": {"content": "<new>"}}, {"x": {"content": "<new>"}}, {"-1": {"content": "<new>"}},
        {"256": {"content": "<s>"}},
    ]  # fmt: skip

    def cases(self, whole):
        """(file, key, the contents of the files)"""
        named = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": self.TEMPLATE}
        named |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        roles = "bos_token eos_token unk_token additional_special_tokens extra_special_tokens extra_token".split()
        other = "pad_token add_bos_token added_tokens_decoder split_special_tokens chat_template".split()
        bare = {"tokenizer.json": whole, "tokenizer_config.json": {"chat_template": self.TEMPLATE}}
        for value in (*VALUES, *self.TOKENS):
            for key in (*roles, *other, "tokenizer_class"):
                yield "tokenizer_config.json", key, bare | {"tokenizer_config.json": named | {key: value}}
            for key in roles:
                older = {"special_tokens_map.json": {"bos_token": "<s>"} | {key: value}}
                yield "special_tokens_map.json", key, bare | older
            for key in whole:
                yield "tokenizer.json", key, bare | {"tokenizer.json": whole | {key: value}}
            yield "added_tokens.json", "<new>", bare | {"added_tokens.json": {"<new>": value}}
            for file in (*bare, "special_tokens_map.json", "added_tokens.json"):
                yield file, "", bare | {file: value}

    def test_all_files(self, whole, tmp_path):
        wrong, compared = [], 0
        for number, (file, key, files) in enumerate(drawn(self.cases(whole), 80)):
            directory = tmp_path / str(number)
            directory.mkdir()
            for name, content in files.items():
                (directory / name).write_text(json.dumps(content))
            ours, complaint = refusal(partial(self.ours, directory), file, key)
            if complaint:
                wrong.append((file, key, files[file], complaint))
            theirs = self.theirs(directory) if ours is not None else None
            if theirs is not None:
                compared += 1
                if ours != theirs:
                    wrong.append((file, key, files[file], ours, theirs))
        assert compared and not wrong, report(wrong)

    MESSAGES = [{"role": "user", "content": "hi <s> <new> x"}]

    def ours(self, directory):
        tokenizer = Tokenizer.from_directory(directory)
        bos, text = tokenizer.bos_id, "a <s> <new> x"
        plain = tokenizer.encode(text)
        if tokenizer.chat_template is None:
            return plain, bos, None, None
        return plain, bos, tokenizer.render(self.MESSAGES), tokenizer.chat(self.MESSAGES)

    def theirs(self, directory):
        """The same from transformers; None where it does not read the directory."""
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            whole = tokenizer("a <s> <new> x")["input_ids"]
            plain = tokenizer("a <s> <new> x", add_special_tokens=False)["input_ids"]
            bos = whole[0] if whole[1:] == plain else None
            if tokenizer.chat_template is None:
                return plain, bos, None, None
            options = dict(add_generation_prompt=True, return_dict=False)
            text = tokenizer.apply_chat_template(self.MESSAGES, tokenize=False, **options)
            return plain, bos, text, tokenizer.apply_chat_template(self.MESSAGES, **options)
        except Exception:
            return None


class TestGGUF:
    """Every key of a GGUF file. What is a right value of a key that matters is in test_gguf_settings.py."""

    FURTHER = (
        "split.no", "split.count", "split.tensors.count", "llama.rope.scaling.type", "llama.rope.scaling.factor",
        "llama.rope.scale_linear", "llama.rope.scaling.attn_factor", "llama.attention.value_length",
        "llama.expert_count", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id", "tokenizer.ggml.padding_token_id", "some.other_key",
    )  # fmt: skip
    MATTER = {  # keys of which more than one value is right
        "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base", "llama.rope.scaling.factor",
        "llama.rope.scale_linear",
    }  # fmt: skip

    def test_every_key(self, tmp_path):
        model = tiny_model()
        usual, tensors = model(TOKENS), tensors_of(model)
        none_in_gguf = (None, 10**30, 10**400, [None], {}, {"a": 1})
        values = [value for value in VALUES if value not in none_in_gguf]
        values += [2**63, 2**64 - 1, -(2**63), [1.5, 2.5], [[1]]]
        cases = [(key, value) for key in (*SETTINGS, *self.FURTHER) for value in values]
        wrong = []
        for key, value in drawn(cases, 120):
            file = write(tmp_path / "tiny.gguf", SETTINGS | {key: value}, tensors)
            got, complaint = refusal(partial(load_model, file), file, "tiny.gguf" if value == [[1]] else key)
            if complaint:
                wrong.append((key, value, complaint))
            if got is not None:
                logits = got(TOKENS)
                if key == "general.alignment":  # this file is written for 32 bytes: at others is something else
                    continue
                if not logits.isfinite().all() or (key not in self.MATTER and not torch.equal(logits, usual)):
                    wrong.append((key, value, "another model"))
        assert not wrong, report(wrong)
