"""Streams of text: whatever the decoder and the ids, the pieces joined are the text of the whole."""

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

from llmsys.models import TextStream, Tokenizer
from llmsys.models.text.tokenizer import TextStream as UnderItsOldName
from tests.support.size import sized

some = settings(max_examples=sized(short=40, full=1000))

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}  # the id of a byte is the byte
WORDS = ["▁hi", "▁", "a", "▁▁", "é", ".", "n't", "##ing", "\ufffd", "<unk>", "there</w>", "", " b", "'s", "▁do not"]


def make(decoder, vocabulary, **settings) -> Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(vocabulary, [], **settings))
    core.decoder = decoder
    core.add_special_tokens(["<s>", "</s>"])
    core.add_tokens(["<tool>", "<0x41>!"])  # such as are no special ones
    return Tokenizer(core)


def with_bytes(*steps, vocabulary=None) -> Tokenizer:
    words = {word: 256 + i for i, word in enumerate(WORDS)}
    return make(decoders.Sequence(list(steps)), vocabulary or BYTES | words, byte_fallback=True, unk_token="<unk>")


def with_words(decoder) -> Tokenizer:
    return make(decoder, {word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")


spaces = decoders.Replace("▁", " ")
TOKENIZERS = {
    "llama 2": with_bytes(spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)),
    "gemma": with_bytes(spaces, decoders.ByteFallback(), decoders.Fuse()),
    "fallback alone": with_bytes(decoders.ByteFallback()),
    "few bytes": with_bytes(
        spaces, decoders.ByteFallback(), decoders.Fuse(),
        vocabulary={"<unk>": 0, "<0xf0>": 1, "<0x9F>": 2, "<0x98>": 3, "<0x80>": 4, "▁x": 5, "<0x41>": 6},
    ),
    "byte level": make(
        decoders.ByteLevel(), {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    ),
    "metaspace": with_words(decoders.Metaspace()),
    "metaspace, first": with_words(decoders.Metaspace(prepend_scheme="first", split=False)),
    "word pieces": with_words(decoders.WordPiece("##", cleanup=True)),
    "word pieces as they are": with_words(decoders.WordPiece("##", cleanup=False)),
    "words with an end": with_words(decoders.BPEDecoder("</w>")),
    "two spaces stripped": with_words(decoders.Sequence([spaces, decoders.Fuse(), decoders.Strip(" ", 2, 0)])),
    "none": with_words(None),
}  # fmt: skip


def pieces_of(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.flush()]


def emoji(tokenizer) -> list[int]:
    """The ids of "😀", a token a byte."""
    core = tokenizer.core
    alphabet = {byte: letter for byte, letter in zip("😀".encode(), "ðŁĺĢ", strict=True)}  # as ByteLevel writes bytes
    names = ((f"<0x{byte:02X}>", f"<0x{byte:02x}>", alphabet[byte]) for byte in "😀".encode())
    return [next(id for name in each if (id := core.token_to_id(name)) is not None) for each in names]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_joined_are_the_text_of_the_whole(name):
    tokenizer = TOKENIZERS[name]
    last = len(tokenizer) + 2  # a model may know more tokens than its tokenizer: these have no text

    @some
    @given(st.lists(st.integers(0, last) | st.integers(max(0, last - 24), last), max_size=40))
    def check(ids):
        pieces = pieces_of(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])

    check()


@pytest.mark.parametrize("name", ["llama 2", "gemma", "fallback alone", "few bytes", "byte level"])
@some
@given(data=st.data())
def test_characters_cut_anywhere_and_broken_by_anything(name, data):
    """Rows of bytes in which a character is whole, cut or twice there, with special and other tokens in between."""
    tokenizer = TOKENIZERS[name]
    letters, last = emoji(tokenizer), len(tokenizer) + 1
    cuts = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda ends: letters[min(ends) : max(ends)])
    others = st.lists(st.integers(last - 8, last), max_size=1)
    ids = sum(data.draw(st.lists(st.just(letters) | cuts | others, max_size=9)), [])
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("cut", range(4))
def test_two_emoji_the_second_cut(cut):
    tokenizer = TOKENIZERS["llama 2"]
    data = "😀😀".encode()[: 8 - cut]
    pieces = pieces_of(tokenizer, [256, *data])  # ▁hi
    assert pieces[0] == "hi"  # said at once: what comes after it cannot change it
    assert "".join(pieces) == ("hi😀😀" if cut == 0 else "hi" + "\ufffd" * len(data))


def test_a_row_of_bytes_is_said_when_it_is_over():
    tokenizer = TOKENIZERS["llama 2"]
    special = tokenizer.core.token_to_id("<s>")
    pieces = pieces_of(tokenizer, [256, *"é".encode(), special, *"😀".encode(), 258])
    assert pieces == ["hi", "", "", "", "", "", "", "", "é😀a", ""]


def test_byte_level_text_is_said_as_soon_as_its_characters_are_complete():
    tokenizer = TOKENIZERS["byte level"]
    letters = emoji(tokenizer)
    assert pieces_of(tokenizer, letters * 2) == ["", "", "", "😀", "", "", "", "😀", ""]


@some
@given(ids=st.lists(st.integers(0, 257), max_size=30))
@example(ids=[])
def test_it_is_what_the_tokenizers_librarys_own_stream_says(ids):
    """Whose stream has no end, so that what waits is missing there."""
    for name in ("byte level", "metaspace", "word pieces"):
        tokenizer = TOKENIZERS[name]
        theirs = DecodeStream(skip_special_tokens=True)
        steps = [theirs.step(tokenizer.core, token) or "" for token in ids]
        *pieces, rest = pieces_of(tokenizer, ids)
        assert steps == pieces and "".join(steps) + rest == tokenizer.decode(ids), name


def test_ids_may_be_numpys():
    tokenizer = TOKENIZERS["llama 2"]
    assert "".join(pieces_of(tokenizer, np.array([256, 258]))) == "hia"


def test_a_long_row_of_bytes_takes_no_noticeable_time():
    """A model that babbles bytes: every push looks at the row again."""
    tokenizer = TOKENIZERS["gemma"]
    ids = [*"😀".encode()] * 200
    assert "".join(pieces_of(tokenizer, ids)) == "😀" * 200


def test_it_is_still_there_under_its_old_name():
    assert UnderItsOldName is TextStream
