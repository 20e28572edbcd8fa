"""Which files of a directory hold the model, whose head it has, and what other savers call its weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmsys.models import load_model
from llmsys.models.checkpoints.safetensors_files import usual_name

TOKENS = torch.arange(30)[None]
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, write_checkpoint):
    path = tmp_path_factory.mktemp("saved")
    return path, write_checkpoint(path, num_hidden_layers=2)


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "model")


@pytest.fixture
def expected(saved):
    with torch.inference_mode():
        return saved[1](TOKENS).logits


def same(directory, expected):
    torch.testing.assert_close(load_model(directory)(TOKENS), expected, atol=2e-4, rtol=1e-4)


def theirs(directory):
    transformers = pytest.importorskip("transformers")
    with torch.inference_mode():
        return transformers.AutoModelForCausalLM.from_pretrained(directory)(TOKENS).logits


def rewrite(directory, change):
    """The tensors of model.safetensors, changed: `change` takes and returns them by name."""
    tensors = change(load_file(directory / WHOLE))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / WHOLE)


def settings(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class TestFiles:
    """As transformers picks them."""

    @pytest.mark.parametrize("name", ["model_old", "optimizer", "consolidated.00", "model-00001-of-00002"])
    def test_what_lies_beside_the_model_is_not_read(self, directory, expected, name):
        other = {key: torch.zeros_like(tensor) for key, tensor in load_file(directory / WHOLE).items()}
        save_file(other | {"step": torch.ones(1)}, directory / f"{name}.safetensors")
        same(directory, expected)

    def test_one_file_comes_before_an_index(self, directory, expected):
        save_file({"lm_head.weight": torch.zeros(97, 48)}, directory / "model-00001-of-00001.safetensors")
        index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
        (directory / INDEX).write_text(json.dumps(index))
        same(directory, expected)
        torch.testing.assert_close(theirs(directory), expected)

    def test_a_file_of_another_name_alone(self, directory, expected):
        (directory / WHOLE).rename(directory / "pytorch_model.safetensors")
        same(directory, expected)

    def test_two_files_that_hold_the_same(self, directory):
        (directory / WHOLE).rename(directory / "a.safetensors")
        shutil.copy(directory / "a.safetensors", directory / "b.safetensors")
        with pytest.raises(ValueError, match=r"in a.safetensors and .* in b.safetensors are the same part"):
            load_model(directory)

    def test_a_tensor_without_a_place_is_named_with_its_file(self, directory):
        rewrite(directory, lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.lora_A": torch.ones(2)})
        with pytest.raises(ValueError, match=r"q_proj.lora_A in model.safetensors .* has no place"):
            load_model(directory)

    def test_weights_that_are_no_floats(self, directory):
        rewrite(directory, lambda tensors: tensors | {"model.norm.weight": torch.ones(48, dtype=torch.int8)})
        with pytest.raises(ValueError, match="model.safetensors: the tensor model.norm.weight holds I8"):
            load_model(directory)


class TestHead:
    """config.json may say that the head is the embedding's matrix; the weights decide."""

    def test_another_matrix_is_the_head(self, directory, expected):
        settings(directory, tie_word_embeddings=True)
        same(directory, expected)
        torch.testing.assert_close(theirs(directory), expected)
        assert not load_model(directory).config.tied_embeddings

    def test_an_equal_one_is_the_embedding(self, directory):
        settings(directory, tie_word_embeddings=True)
        rewrite(directory, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
        model = load_model(directory)
        assert model.config.tied_embeddings and model.head.weight is model.embedding.weight
        torch.testing.assert_close(model(TOKENS), theirs(directory), atol=2e-4, rtol=1e-4)

    @pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight"])
    def test_one_matrix_under_either_name(self, directory, missing):
        settings(directory, tie_word_embeddings=True)
        rewrite(directory, lambda tensors: {name: each for name, each in tensors.items() if name != missing})
        model = load_model(directory)
        assert model.config.tied_embeddings
        torch.testing.assert_close(model(TOKENS), theirs(directory), atol=2e-4, rtol=1e-4)

    def test_a_part_of_a_model_whose_matrix_has_the_heads_name(self, directory):
        settings(directory, tie_word_embeddings=True)
        rewrite(directory, lambda tensors: {n: each for n, each in tensors.items() if n != "model.embed_tokens.weight"})
        head = load_model(directory, layers=range(1, 2)).head.weight
        assert torch.equal(head, load_file(directory / WHOLE)["lm_head.weight"])

    @pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight"])
    def test_two_matrices_of_which_one_is_missing(self, directory, missing):
        rewrite(directory, lambda tensors: {name: each for name, each in tensors.items() if name != missing})
        with pytest.raises(ValueError, match=f"the tensor {missing} is missing"):
            load_model(directory)


class TestNames:
    @pytest.mark.parametrize(
        "renamed",
        [
            lambda name: f"_orig_mod.{name}",
            lambda name: f"module.{name}",
            lambda name: f"module._orig_mod.{name}",
            lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
            lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
            lambda name: name.removeprefix("model."),
        ],
    )
    def test_as_other_savers_write_them(self, directory, expected, renamed):
        rewrite(directory, lambda tensors: {renamed(name): tensor for name, tensor in tensors.items()})
        same(directory, expected)

    def test_a_base_model_whose_head_is_its_embedding(self, directory, tmp_path):
        """transformers' LlamaModel, which saves neither a head nor "model."."""
        transformers = pytest.importorskip("transformers")
        settings(directory, tie_word_embeddings=True)
        rewrite(directory, lambda tensors: {name: each for name, each in tensors.items() if name != "lm_head.weight"})
        transformers.AutoModel.from_pretrained(directory).save_pretrained(tmp_path / "base")
        assert json.loads((tmp_path / "base" / "config.json").read_text())["architectures"] == ["LlamaModel"]
        torch.testing.assert_close(load_model(tmp_path / "base")(TOKENS), theirs(directory), atol=2e-4, rtol=1e-4)

    def test_one_weight_under_two_names(self, directory):
        rewrite(directory, lambda tensors: tensors | {"_orig_mod.model.norm.weight": tensors["model.norm.weight"]})
        with pytest.raises(ValueError, match=r"model.norm.weight in .* are the same part of the model"):
            load_model(directory)

    def test_a_name_that_is_usual_stays(self):
        for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
            assert usual_name(name) == name
