"""A tokenizer of single bytes, a random model of its vocabulary, and a small corpus: training in milliseconds."""

import os

import pytest
import tokenizers
import torch

# Which is decided by the first import of triton, and torch.optim imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tokenizers import decoders, models, pre_tokenizers

from llmsys.models import Llama, LlamaConfig, Tokenizer
from llmsys.training import Corpus

END = "<|endoftext|>"


def make_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END, "<|turn|>"])
    template = "{% for each in messages %}{{ each.content }}<|turn|>{% endfor %}"
    return Tokenizer(core, eos_ids=[257], chat_template=template, special={"eos_token": "<|turn|>"})


def make_model(layers: int = 2) -> Llama:
    """A new one each time, always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        name="tiny", vocab_size=258, hidden_size=32, layers=layers, heads=4, kv_heads=2, head_size=8, mlp_size=48,
        context_length=64,
    )  # fmt: skip
    return Llama(config, make_tokenizer()).requires_grad_(False).eval()


def make_texts() -> dict[str, str]:
    """Forty files of a language that is easily learnt."""
    return {f"{i}.txt": f"{i} is {'even' if i % 2 == 0 else 'odd'}.\n" * 20 for i in range(40)}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
def tiny() -> Llama:
    return make_model()


@pytest.fixture(scope="session")
def new_model():
    """`make_model`, for tests that need several."""
    return make_model


@pytest.fixture(scope="session")
def deep():
    """`make_model` of enough layers for four stages."""
    return lambda: make_model(5)


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    return make_texts()


@pytest.fixture(scope="session")
def corpus(texts, tokenizer) -> Corpus:
    return Corpus.from_texts(texts, tokenizer)
