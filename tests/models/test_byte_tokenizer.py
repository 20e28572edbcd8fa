"""A token is a byte: of any text, back and forth; saved and loaded it is the same."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from llmsys.models.text.byte_tokenizer import _letters, byte_tokenizer
from llmsys.models.text.tokenizer import Tokenizer

TOKENIZER = byte_tokenizer()


@given(st.text())
def test_tokens_are_the_texts_bytes(text):
    tokens = TOKENIZER.encode(text)
    assert tokens == list(text.encode()) and TOKENIZER.decode(tokens) == text


def test_every_byte_has_the_letter_that_the_library_writes_for_it():
    assert set(_letters()) == set(pre_tokenizers.ByteLevel.alphabet()) and len(set(_letters())) == 256
    assert TOKENIZER.decode(list(range(128))) == bytes(range(128)).decode()


def test_the_last_token_ends_a_text_and_no_text_has_it_unless_it_says_so():
    assert len(TOKENIZER) == 257 and TOKENIZER.end_of_text == 256 and TOKENIZER.eos_ids == {256}
    assert TOKENIZER.encode("a<|endoftext|>") == [97, 256]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    TOKENIZER.core.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_directory(tmp_path, eos_ids=[256])
    assert again.encode("naïve\n\t💡") == list("naïve\n\t💡".encode())
