"""Tiny random models that transformers wrote, and what transformers says: what the engine is held to.

A prompt's greedy continuation is generated once, by itself and unpadded, and is long enough for every test that asks.
"""

import functools
import os
import string
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

# transformers' model classes import triton, and the first import decides whether it interprets or compiles.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from llmsys.models import Llama, Tokenizer, load_model

LONGEST = 24  # tokens of a continuation
EOS = 2
CLOSE = 2e-4  # two logits nearer than this may change places by rounding in fp32


@dataclass(frozen=True)
class Pair:
    """One model twice, ours and transformers'."""

    ours: Llama
    theirs: Any

    @functools.cache  # noqa: B019, one for each of a session's two models
    def greedy(self, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
        """What transformers says next, LONGEST tokens with no end to it, and by how much each was ahead."""
        said = self.theirs.generate(
            torch.tensor([prompt]), max_new_tokens=LONGEST, do_sample=False, eos_token_id=None, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        best = torch.cat(said.logits).topk(2).values
        return said.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()

    def agrees(self, prompt, tokens, *, ends=(), max_tokens=LONGEST, instead=None) -> bool:
        """Whether `tokens` are transformers', up to the first of `ends`, which is left out, or `max_tokens`.

        Where one differs and transformers' own two best are as close as rounding, what follows is another story.
        `instead` of transformers' tokens others may be expected, exactly.
        """
        expected, ahead = self.greedy(tuple(prompt)) if instead is None else (instead, [1.0] * (LONGEST + 1))
        until = next((i for i, token in enumerate(expected[:max_tokens]) if token in ends), max_tokens)
        expected = expected[:until]
        for i, (ours, theirs) in enumerate(zip(tokens, expected, strict=False)):
            if ours != theirs:
                return ahead[i] < CLOSE
        return len(tokens) == len(expected)


@pytest.fixture(scope="session")
def pairs() -> dict[str, Pair]:
    return {"Llama": pair("Llama", torch.float32), "Qwen3": pair("Qwen3", torch.float64)}


@pytest.fixture(scope="session")
def llama(pairs) -> Pair:
    """In fp32."""
    return pairs["Llama"]


@pytest.fixture(scope="session")
def qwen3(pairs) -> Pair:
    """In fp64: the same in any batch, so that what is drawn is, too."""
    return pairs["Qwen3"]


def pair(family: str, dtype: torch.dtype) -> Pair:
    transformers = pytest.importorskip("transformers")
    settings = dict(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1,
        eos_token_id=EOS, pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 5e3},
    )  # fmt: skip
    torch.manual_seed(len(family))
    theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for weight in theirs.parameters():  # far enough apart for greedy decoding to be stable
            weight.copy_(torch.randn_like(weight) * (0.4 if weight.dim() == 2 else 1))
    with tempfile.TemporaryDirectory() as path:
        theirs.eval().save_pretrained(path)
        ours = load_model(path, dtype=dtype)
    for weight in ours.parameters():  # out of the file, where they begin anywhere, into memory of torch's alignment
        weight.data = weight.data.clone()
    theirs.to(dtype)
    ours.tokenizer = letters()
    return Pair(ours, theirs)


def letters() -> Tokenizer:
    """67 tokens: three special ones, a letter each, the bytes of an emoji, and some of two letters."""
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_of_emoji = as_bytes.pre_tokenize_str("😀")[0][0]
    words = [*string.ascii_letters, ".", "Ġ", *bytes_of_emoji, "ab", "cd", "The", "he", "ou", "in"]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    assert len(vocabulary) == 67
    core = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    core.decoder = decoders.ByteLevel()
    core.pre_tokenizer = as_bytes
    core.add_special_tokens(["<pad>", "<s>", "</s>"])
    return Tokenizer(core, eos_ids=[EOS], bos_id=1)
