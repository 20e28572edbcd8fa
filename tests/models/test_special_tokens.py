"""The tokenizer of a directory: special tokens in whichever file they stand, as transformers reads them."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, processors

from llmsys.models import Llama, LlamaConfig, Tokenizer, load_model, save_model

TEMPLATE = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ image_token }}"
TEXTS = ["a <s> b</s>", "<new>a <x>b", " <new> c", "<s><new>", ""]
NEW = {"content": "<new>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


def bytes_alone():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in ("<s>", "</s>")])
    return core


@pytest.fixture
def directory(tmp_path):
    bytes_alone().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def put(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


PLACES = {
    "tokenizer_config": {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}},
    "as objects": {
        "tokenizer_config": {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>"},
    },
    "special_tokens_map": {"special_tokens_map": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}},
    "the map comes first": {
        "tokenizer_config": {"bos_token": "</s>", "eos_token": "<s>"},
        "special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"},
    },
    "but not before added_tokens_decoder": {
        "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {"258": NEW}},
        "special_tokens_map": {"bos_token": "</s>", "eos_token": "<s>"},
    },
    "added_tokens_decoder, no special one": {
        "tokenizer_config": {"added_tokens_decoder": {"258": NEW | {"special": False}}},
    },
    "added_tokens_decoder, two": {
        "tokenizer_config": {"added_tokens_decoder": {"259": NEW | {"content": "<x>"}, "258": NEW | {"lstrip": True}}},
    },
    "added_tokens": {"added_tokens": {"<new>": 258, "<x>": 259}},
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": ["<new>", "<x>"]}},
    "in the map": {"special_tokens_map": {"additional_special_tokens": ["<new>", "<x>"]}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<new>"}}},
    "a role of its own": {"tokenizer_config": {"image_token": "<x>"}},
    "no token of the vocabulary": {"tokenizer_config": {"eos_token": "<new>", "pad_token": "<x>"}},
    "null": {"tokenizer_config": {"bos_token": None, "eos_token": "</s>"}},
    "split": {"tokenizer_config": {"split_special_tokens": True, "bos_token": "<s>"}},
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_texts_and_conversations_are_encoded_as_by_transformers(directory, place):
    transformers = pytest.importorskip("transformers")
    files = {"tokenizer_config": {}} | PLACES[place]
    files["tokenizer_config"] = files["tokenizer_config"] | {"chat_template": TEMPLATE}
    put(directory, **files)
    ours, theirs = Tokenizer.from_directory(directory), transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        talk = [{"role": "user", "content": text}]
        assert ours.render(talk) == theirs.apply_chat_template(talk, tokenize=False)
        assert ours.chat(talk) == theirs.apply_chat_template(talk, return_dict=False)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)
    assert ours.eos_ids == ({theirs.eos_token_id} if theirs.eos_token_id is not None else set())


def test_a_token_is_what_the_model_knows_it_by(directory):
    put(directory, tokenizer_config={"added_tokens_decoder": {"300": NEW}})
    with pytest.raises(ValueError, match=r"tokenizer_config.json: added_tokens_decoder gives '<new>' the id 300.* 258"):
        Tokenizer.from_directory(directory)


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 257, "pad_type_id": 0,
    "pad_token": "</s>",
}  # fmt: skip


@pytest.mark.parametrize("left_on", [{"truncation": TRUNCATION}, {"padding": PADDING}])
def test_what_a_training_script_left_on_is_off(directory, left_on):
    file = directory / "tokenizer.json"
    usual = Tokenizer.from_directory(directory)
    file.write_text(json.dumps(json.loads(file.read_text()) | left_on))
    given = tokenizers.Tokenizer.from_file(str(file))
    for tokenizer in (Tokenizer.from_directory(directory), Tokenizer(given)):
        assert tokenizer.encode("a longer text") == usual.encode("a longer text")
        assert tokenizer.bos_id is None
    assert len(given.encode("a longer text").ids) in (4, 16)  # the one that was given is as it was


START, END = ("<s>", 256), ("</s>", 257)


@pytest.mark.parametrize(
    "post_processor, bos",
    [
        (None, None),
        (processors.TemplateProcessing("<s> $A", special_tokens=[START]), 256),
        (processors.TemplateProcessing("$A </s>", special_tokens=[END]), None),
        (processors.TemplateProcessing("<s> $A </s>", special_tokens=[START, END]), 256),
        (processors.Sequence([processors.ByteLevel(), processors.RobertaProcessing(END, START)]), 256),
        (processors.RobertaProcessing(END, START), 256),
        (processors.ByteLevel(), None),
    ],
)  # fmt: skip
def test_which_token_begins_a_text_is_in_tokenizer_json(directory, post_processor, bos):
    transformers = pytest.importorskip("transformers")
    core = bytes_alone()
    if post_processor is not None:
        core.post_processor = post_processor
    core.save(str(directory / "tokenizer.json"))
    for switch in (None, True, False):  # add_bos_token counts for nothing where there is a tokenizer.json
        put(directory, tokenizer_config={"bos_token": "<s>", "add_bos_token": switch})
        assert Tokenizer.from_directory(directory).bos_id == bos
        whole = transformers.AutoTokenizer.from_pretrained(directory)("ab")["input_ids"]
        assert (whole[0] == 256) == (bos == 256)


def test_two_tokens_before_a_text_are_refused(directory):
    core = bytes_alone()
    core.post_processor = processors.TemplateProcessing("<s> </s> $A", special_tokens=[START, END])
    core.save(str(directory / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer.json: post_processor puts \[256, 257\]"):
        Tokenizer.from_directory(directory)


def test_a_text_that_cannot_be_encoded_is_an_error_in_words():
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="?"))
    with pytest.raises(ValueError, match="tokenizer cannot encode the text"):
        Tokenizer(core).encode("b")


class TestTemplate:
    @pytest.mark.parametrize("several", [{"default": "T", "rag": "R"}, [{"name": "default", "template": "T"}]])
    def test_of_several_the_default(self, directory, several):
        put(directory, tokenizer_config={"chat_template": several})
        assert Tokenizer.from_directory(directory).render([{"role": "user", "content": "a"}]) == "T"

    @pytest.mark.parametrize("several", [{"rag": "R"}, [{"name": "rag", "template": "R"}], [], [None], 5])
    def test_of_several_none(self, directory, several):
        put(directory, tokenizer_config={"chat_template": several})
        with pytest.raises(ValueError, match="tokenizer_config.json: chat_template must be text, or several"):
            Tokenizer.from_directory(directory)

    def test_not_text(self, directory):
        (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match="chat_template.jinja: not text"):
            Tokenizer.from_directory(directory)


class TestEndsOfATurn:
    """Of a whole directory: generation_config.json before config.json, and the tokenizer's own in any case."""

    @pytest.fixture
    def saved(self, tmp_path):
        save_model(Llama(LlamaConfig("t", 258, 16, 1, 2, 2, 8, 16, 32), Tokenizer(bytes_alone())), tmp_path)
        return tmp_path

    def ends(self, saved, config=(), **files):
        settings = json.loads((saved / "config.json").read_text())
        settings.pop("eos_token_id", None)
        put(saved, config=settings | dict(config), **files)
        return load_model(saved).tokenizer.eos_ids

    def test_where_they_stand(self, saved):
        assert self.ends(saved, {"eos_token_id": 5}) == {5}
        assert self.ends(saved, {"eos_token_id": [5, 6]}) == {5, 6}
        assert self.ends(saved, {"eos_token_id": 5}, tokenizer_config={"eos_token": "</s>"}) == {5, 257}
        assert self.ends(saved, {"eos_token_id": 5}, generation_config={"eos_token_id": [7, 8]}) == {7, 8, 257}
        assert self.ends(saved, {"eos_token_id": 5}, generation_config={}) == {5, 257}

    def test_where_there_are_none_it_is_transformers_default(self, saved):
        assert load_model(saved).tokenizer.eos_ids == frozenset()  # save_model says so
        assert self.ends(saved) == {2}
        assert self.ends(saved, tokenizer_config={"eos_token": "</s>"}) == {257}
