"""Tokens one by one: their bytes, put together, are the text's."""

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from hypothesis import given
from hypothesis import strategies as st

from llmsys.models import Tokenizer
from llmsys.models.checkpoints.weights import find_smollm2, open_checkpoint
from llmsys.serving.server.token_text import BYTES, TokenText
from tests.serving.server.running import tiny_model

TINY = tiny_model().tokenizer


def test_each_byte_has_a_letter():
    assert len(BYTES) == 256 and set(BYTES.values()) == set(range(256))
    assert BYTES["A"] == 65 and BYTES["Ġ"] == 32 and BYTES["Ċ"] == 10


@given(st.text())
def test_the_bytes_of_tokens_are_those_of_the_text(text):
    tokens = TINY.encode(text)
    assert b"".join(TokenText(TINY).bytes(token) for token in tokens) == text.encode()


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return open_checkpoint(find_smollm2()).tokenizer


def test_of_a_real_vocabulary(smollm2):
    text = TokenText(smollm2)
    tokens = smollm2.encode("Un café, 😀 naïve\n\n")
    assert b"".join(map(text.bytes, tokens)).decode() == "Un café, 😀 naïve\n\n"
    end = next(iter(smollm2.eos_ids))
    assert text.shown(end) == smollm2.decode([end], special=True) and text.plain(end) == ""


def test_what_is_shown():
    text = TokenText(TINY)
    (whole,), (first, *_) = TINY.encode("é"), TINY.encode("€")
    assert (text.shown(whole), text.plain(whole)) == ("é", "é")
    assert (text.shown(first), text.plain(first)) == ("bytes:\\xe2", "")
    assert (text.shown(1), text.plain(1)) == ("</s>", "")
    assert text.bytes(10_000) == b"", "beyond the vocabulary"
