"""Text to token ids and back, and a conversation to the text that the model was trained to continue.

The vocabularies here are byte-level BPE: text is cut into words by a pattern, a word into bytes, and pairs are merged
in the order in which training found them. As a token is a string of *bytes*, a character may be spread over several,
and a stream of text must wait for the rest of it (`llmsys.models.text_stream`). The work is done by the `tokenizers`
library; a GGUF file holds the vocabulary and the merges, but of the pattern only its name.

A conversation becomes text by the checkpoint's chat template, a Jinja program. It comes from strangers, so it runs in
Jinja's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from llmsys.models.text_stream import TextStream  # noqa: F401, which was here before

Messages = Sequence[Mapping[str, Any]]

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # GPT-2's and its many heirs', Llama 3's, Llama 2's
_CONTROL, _USER_DEFINED = 3, 4  # token types in GGUF


class Tokenizer:
    """A vocabulary, and what goes with it.

    Attributes
    ----------
    eos_ids : frozenset of int
        The tokens at which the model's turn is over.
    bos_id : int or None
        The token that a text begins with, where the model wants one.
    chat_template : str or None
    special : dict
        What the template may know as bos_token, eos_token …
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        eos_ids: Sequence[int] = (),
        bos_id: int | None = None,
        chat_template: str | None = None,
        special: Mapping[str, str] | None = None,
    ):
        self.core = core
        self.eos_ids = frozenset(eos_ids)
        self.bos_id = bos_id
        self.chat_template = chat_template
        self.special = dict(special or {})

    def __len__(self) -> int:
        return self.core.get_vocab_size()

    def __repr__(self) -> str:
        chat = "with a" if self.chat_template else "without a"
        return f"Tokenizer({len(self):,} tokens, eos_ids={sorted(self.eos_ids)}, {chat} chat template)"

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`. Special tokens written out in it are recognised; none are added.

        Bytes that the vocabulary lacks are dropped (SmolLM2's lacks a few control characters, such as U+0004).
        """
        return self.core.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, special tokens left out unless `special`. Bytes that are no UTF-8 become U+FFFD."""
        return self.core.decode(list(ids), skip_special_tokens=not special)

    def chat(self, messages: Messages) -> list[int]:
        """The token ids of a conversation, up to where the model answers.

        Parameters
        ----------
        messages
            `{"role": "user" | "assistant" | "system", "content": "…"}`, oldest first.

        Raises
        ------
        ValueError
            There is no chat template, or a message is not of that form, or the template refuses the conversation.
        """
        return self.encode(self.render(messages))

    def render(self, messages: Messages) -> str:
        """The text of a conversation, by the chat template. Arguments and errors as for `chat`."""
        if self.chat_template is None:
            raise ValueError("this checkpoint has no chat template: give the model token ids, from encode(text)")
        if not messages:
            raise ValueError("messages must hold at least one message, got none")
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
                raise ValueError(f"a message must be {{'role': 'user', 'content': '…'}}, got {message!r}")
        from jinja2 import TemplateError

        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self.special)
        except TemplateError as error:
            raise ValueError(f"the checkpoint's chat template refuses this conversation: {error}") from error

    @property
    def end_of_text(self) -> int | None:
        """The token that separates texts: of a chat model, not the one that ends a turn, if there is another."""
        found = (self.core.token_to_id(name) for name in _ENDS_OF_TEXT)
        return next((id for id in found if id is not None), min(self.eos_ids, default=None))

    def core_with_bos(self) -> tokenizers.Tokenizer:
        """`core`, made to put `bos_id` first by itself, which is how a tokenizer.json says that the model wants it."""
        if self.bos_id is None or self.core.encode("").ids[:1] == [self.bos_id]:
            return self.core
        core = tokenizers.Tokenizer.from_str(self.core.to_str())
        token = core.id_to_token(self.bos_id)
        core.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, self.bos_id)]
        )
        return core

    @cached_property
    def _template(self):
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(reason: str):
            raise TemplateError(reason)

        def as_json(value: Any, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=False, **options)  # Jinja's own escapes for HTML

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = as_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        return environment.from_string(self.chat_template)

    @classmethod
    def from_gguf(cls, settings: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer in a GGUF file's settings (`llmsys.models.gguf.read_header`).

        Raises
        ------
        ValueError
            The vocabulary is no byte-level BPE, or its pattern is unknown here.
        """
        kind, pattern = settings.get("tokenizer.ggml.model"), settings.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2":
            raise ValueError(
                f"tokenizer.ggml.model is {kind!r}; only byte-level BPE ('gpt2') is read from GGUF: take the model's "
                "Hugging Face directory, whose tokenizer.json says everything"
            )
        tokens = settings.get("tokenizer.ggml.tokens", [])
        vocabulary = {token: i for i, token in enumerate(tokens)}
        merges = [tuple(merge.split(" ")) for merge in settings.get("tokenizer.ggml.merges", [])]
        try:
            core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pattern == "llama-bpe"))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"tokenizer.ggml.merges do not go with tokenizer.ggml.tokens ({error})") from error
        core.pre_tokenizer = _pattern(pattern)
        core.decoder = decoders.ByteLevel()
        for i, kind in enumerate(settings.get("tokenizer.ggml.token_type", ())):
            if kind == _CONTROL:
                core.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False)])
            elif kind == _USER_DEFINED:
                core.add_tokens([AddedToken(tokens[i], normalized=False)])
        ids = {
            name: settings[f"tokenizer.ggml.{name}_token_id"]
            for name in ("bos", "eos", "eot", "eom")
            if f"tokenizer.ggml.{name}_token_id" in settings
        }
        return cls(
            core,
            eos_ids=[ids[name] for name in ("eos", "eot", "eom") if name in ids],
            bos_id=ids.get("bos") if settings.get("tokenizer.ggml.add_bos_token", False) else None,
            chat_template=settings.get("tokenizer.chat_template"),
            special={f"{name}_token": tokens[i] for name, i in ids.items()},
        )

    @classmethod
    def from_directory(cls, path: Path, *, eos_ids: Sequence[int] = ()) -> "Tokenizer":
        """tokenizer.json of a Hugging Face directory, with what tokenizer_config.json and chat_template.jinja add."""
        try:
            core = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path / 'tokenizer.json'}: not a tokenizer ({error}); download it again") from error
        settings = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
        special = {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = settings.get(name)
            if token is not None:
                special[name] = token["content"] if isinstance(token, dict) else token
        template = settings.get("chat_template")
        if isinstance(template, list):  # several by name
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        if (path / "chat_template.jinja").is_file():
            template = (path / "chat_template.jinja").read_text(encoding="utf-8")
        ends = set(eos_ids)
        if "eos_token" in special:
            ends.add(core.token_to_id(special["eos_token"]))
        begins = core.encode("").ids  # what the checkpoint's own post-processing puts first
        return cls(
            core,
            eos_ids=sorted(ends - {None}),
            bos_id=begins[0] if begins else None,
            chat_template=template,
            special=special,
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; what is none is refused with the file's name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error


def _pattern(name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words before bytes are merged, by the name that llama.cpp gives the pattern."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    known = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), bytes_only],
        "qwen2": [pre_tokenizers.Split(Regex(_LLAMA3.replace("{1,3}", "")), "isolated"), bytes_only],
    }
    if name not in known:
        raise ValueError(
            f"tokenizer.ggml.pre is {name!r}; known are {', '.join(known)}: take the model's Hugging Face directory"
        )
    return pre_tokenizers.Sequence(known[name])
