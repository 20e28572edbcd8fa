"""A tokenizer of single bytes: what a small model needs, whose parameters should not all be in its embedding.

Token 0 to 255 is the byte of that number, 256 ends a text. Nothing was trained, so nothing has to be shipped, any text
has tokens, and a loss in nats a token is one in nats a byte.
"""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llmsys.models.text.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def byte_tokenizer() -> Tokenizer:
    """A new tokenizer of 257 tokens, whose last one ends a text."""
    letters = _letters()
    core = tokenizers.Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END_OF_TEXT])
    return Tokenizer(core, eos_ids=[256], special={"eos_token": END_OF_TEXT})


def _letters() -> list[str]:
    """The letter that byte-level vocabularies write for each byte: its own where that can be printed, and for the
    others, in order, those from U+0100 on (https://github.com/openai/gpt-2, encoder.py)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]
