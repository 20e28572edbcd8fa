"""Tokenizers: against a byte-pair encoding written out from its definition, on odd strings; and the chat template."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.models import TextStream, Tokenizer, find_smollm2
from llmsys.models.checkpoints.gguf import read_header

regex = pytest.importorskip("regex")

ODD = [
    "", " ", "a", "Hello, world!", "  two spaces,\ttab\r\n\n\n three newlines ", "I'll say it's 12345 or 3.14, ½ and ٣",
    "naïve café Ελληνικά 日本語 עברית", "👩‍👩‍👧 🇫🇷 e\u0301", "\x00\x7f\u200b\ufffd", "def f(x):\n    return x**2  # 2x",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start", "don'tCAN'T we'd", "ĠĊ", "\u00a0\u2003x",
]  # fmt: skip
LACKING = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}  # bytes of UTF-8 that are not in SmolLM2's vocabulary
anything = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture(scope="module")
def smollm2_settings():
    try:
        path = find_smollm2()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return read_header(path.read_bytes(), path)[0]


@pytest.fixture(scope="module")
def tokenizer(smollm2_settings) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_settings)


@pytest.fixture(scope="module")
def by_definition(smollm2_settings):
    """Byte-level BPE as GPT-2's paper has it, digits one by one; no part of it is the tokenizers library's."""
    tokens = smollm2_settings["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(smollm2_settings["tokenizer.ggml.merges"])}
    kinds = smollm2_settings["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these bytes stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    word = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def merged(text):
        parts = [letter[byte] for byte in text.encode() if letter[byte] in ids]
        while len(parts) > 1:
            pairs = zip(parts, parts[1:], strict=False)
            rank, i = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairs))
            if rank == len(ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [ids[part] for part in parts]

    def encode(text):
        found = []
        for piece in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
            if piece in special:
                found.append(ids[piece])
                continue
            for run in regex.findall(r"\p{N}|[^\p{N}]+", piece):  # a digit is a piece of its own
                for match in word.findall(run):
                    found += merged(match)
        return found

    return encode


@pytest.mark.parametrize("text", ODD)
def test_odd_strings_are_encoded_by_the_definition(tokenizer, by_definition, text):
    assert tokenizer.encode(text) == by_definition(text)
    assert tokenizer.decode(tokenizer.encode(text), special=True) == text


@settings(max_examples=150)
@given(text=anything)
def test_any_string_is_encoded_by_the_definition_and_comes_back(tokenizer, by_definition, text):
    ids = tokenizer.encode(text)
    if not LACKING & set(text.encode()):
        assert tokenizer.decode(ids, special=True) == text
    if regex.search(r"[^\P{C}\s]", text) is None:  # two tables of Unicode differ in characters not yet assigned
        assert ids == by_definition(text)


@settings(max_examples=100)
@given(text=anything, noise=st.lists(st.integers(0, 300), max_size=8))
def test_a_stream_says_what_decode_says_and_splits_no_character(tokenizer, text, noise):
    ids = tokenizer.encode(text) + noise  # noise: single bytes, which seldom are UTF-8
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)
    assert not any(piece.endswith("\ufffd") for piece in pieces)


def test_a_stream_waits_for_a_character_and_no_longer(tokenizer):
    ids = tokenizer.encode("\U0001f9ff!")  # four bytes, which no merge joins
    assert len(ids) > 3
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids] == [""] * (len(ids) - 2) + ["\U0001f9ff", "!"]


def test_a_tokens_text_is_what_it_adds_to_any_whole_characters(tokenizer):
    for before in (tokenizer.encode("naïve"), tokenizer.encode(" 日本")):
        whole = tokenizer.decode(before)
        for token in range(len(tokenizer)):
            added = tokenizer.decode([*before, token])[len(whole) :]
            assert tokenizer.texts[token] == ("" if "\ufffd" in added else added)


def test_where_a_tokens_text_depends_on_its_place_it_has_none():
    core = tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "b": 1}, []))
    core.decoder = tokenizers.decoders.Metaspace()
    assert Tokenizer(core).decode([0, 0]) == "a a" and Tokenizer(core).texts is None


def test_special_tokens_are_left_out_unless_asked_for(tokenizer):
    ids = tokenizer.encode("<|im_start|>user")
    assert ids[0] == 1
    assert tokenizer.decode(ids) == "user"
    assert tokenizer.decode(ids, special=True) == "<|im_start|>user"


def test_the_chat_template_is_rendered(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi & <b>"}]
    text = tokenizer.render(messages)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi & <b><|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.chat(messages) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.chat(messages), special=True) == text
    assert tokenizer.eos_ids == {0, 2}  # the end of a text, too: as llama.cpp has it
    assert repr(tokenizer) == "Tokenizer(49,152 tokens, eos_ids=[0, 2], with a chat template)"


@pytest.mark.parametrize("messages", [[], [{"content": "Hi"}], [{"role": "user"}], [{"role": 1, "content": ""}]])
def test_what_is_no_conversation_is_refused(messages):
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), chat_template="x")
    with pytest.raises(Exception, match="message"):
        tokenizer.render(messages)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for %}", "refuses"),
    ],
)
def test_a_template_that_refuses_or_escapes_is_an_error(template, message):
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), chat_template=template)
    with pytest.raises(ValueError, match=message):
        tokenizer.render([{"role": "user", "content": "Hi"}])


def test_a_sentencepiece_vocabulary_is_refused_by_name():
    with pytest.raises(ValueError, match="tokenizer.ggml.model is 'llama'.*tokenizer.json"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "llama"})


class TestDirectory:
    """tokenizer.json and what lies beside it."""

    @pytest.fixture
    def directory(self, tmp_path):
        core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "hi": 2, "there": 3}, "hi"))
        core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        core.add_special_tokens(["<s>", "</s>"])
        core.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        core.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def settings(self, directory, **settings):
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))

    def test_tokens(self, directory):
        self.settings(directory, bos_token="<s>", eos_token={"content": "</s>"})
        tokenizer = Tokenizer.from_directory(directory, eos_ids=[3])
        assert tokenizer.encode("hi there") == [2, 3]  # nothing is added
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, {1, 3})

    @pytest.mark.parametrize(
        "template", ["{{ bos_token }}{{ messages[0].content }}", [{"name": "default", "template": "<s>there"}]]
    )
    def test_template_in_the_settings(self, directory, template):
        self.settings(directory, bos_token="<s>", chat_template=template)
        assert Tokenizer.from_directory(directory).chat([{"role": "user", "content": "there"}]) == [0, 3]

    def test_template_in_a_file_of_its_own_comes_first(self, directory):
        self.settings(directory, chat_template="hi")
        (directory / "chat_template.jinja").write_text("{{ {'a': 'é<'} | tojson }} there")
        assert Tokenizer.from_directory(directory).render([{"role": "user", "content": ""}]) == '{"a": "é<"} there'

    def test_alone(self, directory):
        tokenizer = Tokenizer.from_directory(directory)
        assert tokenizer.eos_ids == frozenset() and tokenizer.chat_template is None
