"""A request's text: it ends before the first stop string, in whatever tokens, and what was said is never taken back."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from llmsys.models import Tokenizer
from llmsys.serving.responses.detokenize import Detokenizer
from tests.support.size import sized

# A byte a token, and a few tokens of several: a stop string may begin and end within them.
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
LONGER = ["ab", "bca", "abab", "cc", "ca"]
BYTE_LEVEL = tokenizers.Tokenizer(models.BPE({x: i for i, x in enumerate(LETTERS + LONGER)}, []))
BYTE_LEVEL.decoder = decoders.ByteLevel()
TOKENIZER = Tokenizer(BYTE_LEVEL)

tokens_of_abc = st.lists(st.sampled_from([BYTE_LEVEL.token_to_id(x) for x in ["a", "b", "c", *LONGER]]), max_size=20)
stops_of_abc = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)
some = settings(max_examples=sized(short=100, full=2000))


def bytes_of(text: str) -> list[int]:
    """The tokens of its bytes, one each."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [BYTE_LEVEL.token_to_id(letter) for letter in pre.pre_tokenize_str(text)[0][0]]


def pieces(tokens, stop=()):
    text = Detokenizer(TOKENIZER, stop)
    said = [text.push(token) for token in tokens]
    return [*said, text.finish()], text


def letter_by_letter(whole: str, stop) -> str:
    """The definition: letters are written one after the other until what is written ends in a stop string."""
    written = ""
    for letter in whole:
        written += letter
        if ends := [each for each in stop if written.endswith(each)]:
            return written[: -len(max(ends, key=len))]
    return written


@some
@given(tokens=tokens_of_abc, stop=stops_of_abc)
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut_into_tokens(tokens, stop):
    said, text = pieces(tokens, stop)
    whole = TOKENIZER.decode(tokens)
    assert "".join(said) == text.text == letter_by_letter(whole, stop)
    assert (text.stopped is not None) == any(each in whole for each in stop)


@some
@given(tokens=tokens_of_abc, stop=stops_of_abc)
def test_what_may_become_a_stop_string_is_held_back_and_nothing_else(tokens, stop):
    text = Detokenizer(TOKENIZER, stop)
    for n, token in enumerate(tokens, 1):
        text.push(token)
        whole = TOKENIZER.decode(tokens[:n])
        if text.stopped is not None:
            break
        held = whole[len(text.text) :]
        assert whole.startswith(text.text)
        assert held == "" or any(each.startswith(held) and each != held for each in stop)
        longer = whole[len(text.text) - 1 :] if text.text else ""
        assert not longer or not any(each.startswith(longer) for each in stop), "too little is held back"


@some
@given(st.text(max_size=8))
def test_a_character_over_several_tokens_is_said_whole(written):
    tokens = bytes_of(written) if written else []
    said, _ = pieces(tokens)
    assert "".join(said) == written
    assert all(piece in written for piece in said)


def test_a_stop_string_of_characters_of_several_tokens_each():
    tokens = bytes_of("ja 😀é nein")
    text = Detokenizer(TOKENIZER, ["😀é"])
    said = []
    for token in tokens:
        said.append(text.push(token))
        if text.stopped:
            break
    assert ("".join(said), text.stopped) == ("ja ", "😀é")
    assert len(said) == len("ja 😀é".encode())


def test_after_a_stop_string_nothing_is_said():
    said, text = pieces(bytes_of("one STOP two"), ["STOP"])
    assert "".join(said) == "one " and text.push(bytes_of("x")[0]) == "" and text.finish() == ""


def test_half_a_character_at_the_end_is_marked_as_such_and_may_be_a_stop_string():
    half = bytes_of("ab😀")[:-1]
    said, text = pieces(half)
    assert "".join(said) == "ab\ufffd" and text.stopped is None
    said, text = pieces(half, ["b\ufffd"])
    assert "".join(said) == "a" and text.stopped == "b\ufffd"


def test_without_a_tokenizer_there_is_no_text():
    text = Detokenizer(None)
    assert (text.push(5), text.finish(), text.text) == ("", "", "")
    with pytest.raises(ValueError, match="stop needs a model with a tokenizer"):
        Detokenizer(None, ["x"])


@pytest.mark.parametrize("stop", ["a string", [""], [3]])
def test_stop_is_a_list_of_strings(stop):
    with pytest.raises(ValueError, match="stop must be a list of strings"):
        Detokenizer(TOKENIZER, stop)
