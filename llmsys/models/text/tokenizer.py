"""Text to token ids and back, and a conversation to the text that the model was trained to continue.

The vocabularies here are byte-level BPE: text is cut into words by a pattern, a word into bytes, and pairs are merged
in the order in which training found them. As a token is a string of *bytes*, a character may be spread over several,
and a stream of text must wait for the rest of it (`llmsys.models.text.text_stream`). The work is done by the
`tokenizers` library; a GGUF file holds the vocabulary and the merges, but of the pattern only its name.

A conversation becomes text by the checkpoint's chat template (`llmsys.models.text.chat_template`). What a checkpoint
says about its tokenizer is read in `llmsys.models.checkpoints.gguf_vocabulary` and `llmsys.models.text.special_tokens`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, processors

from llmsys.models.checkpoints.gguf_vocabulary import read_vocabulary
from llmsys.models.text.chat_template import Messages, render
from llmsys.models.text.special_tokens import first_token, read_tokenizer
from llmsys.models.text.text_stream import TextStream  # noqa: F401, which was here before

_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # GPT-2's and its many heirs', Llama 3's, Llama 2's


class Texts(dict[int, str]):
    """By a token's id, the text that it adds after whole characters; "" where it has none, or begins or ends in the
    middle of a character. Looked at once each."""

    def __init__(self, tokenizer: "Tokenizer"):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, id: int) -> str:
        text = self._tokenizer.decode([id])
        self[id] = "" if "\ufffd" in text else text
        return self[id]


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
    texts : Texts or None
        The tokens' own texts, where they are the same in any place.
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
        self.core = _whole_texts(core)
        self.eos_ids = frozenset(eos_ids)
        self.bos_id = bos_id
        self.chat_template = chat_template
        self.special = dict(special or {})
        # A byte-level token is so many bytes, whatever is around it.
        self.texts = Texts(self) if isinstance(core.decoder, decoders.ByteLevel) else None

    def __len__(self) -> int:
        return self.core.get_vocab_size()

    def __repr__(self) -> str:
        chat = "with a" if self.chat_template else "without a"
        return f"Tokenizer({len(self):,} tokens, eos_ids={sorted(self.eos_ids)}, {chat} chat template)"

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`. Special tokens written out in it are recognised; none are added.

        Bytes that the vocabulary lacks are dropped (SmolLM2's lacks a few control characters, such as U+0004); a
        ValueError where the vocabulary is of a kind that cannot drop them.
        """
        try:
            return self.core.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"this checkpoint's tokenizer cannot encode the text ({error})") from error

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, special tokens left out unless `special`. Bytes that are no UTF-8 become U+FFFD."""
        return self.core.decode(list(ids), skip_special_tokens=not special)

    def chat(self, messages: Messages) -> list[int]:
        """The token ids of a conversation, up to where the model answers.

        Parameters
        ----------
        messages
            `{"role": "user" | "assistant" | "system", "content": "…"}`, oldest first. A content may also be a list of
            parts, `{"type": "text", "text": "…"}`, and that of a message with "tool_calls" None.

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
        return render(self.chat_template, messages, self.special)

    @property
    def end_of_text(self) -> int | None:
        """The token that separates texts: of a chat model, not the one that ends a turn, if there is another."""
        found = (self.core.token_to_id(name) for name in _ENDS_OF_TEXT)
        return next((id for id in found if id is not None), min(self.eos_ids, default=None))

    def core_with_bos(self) -> tokenizers.Tokenizer:
        """`core`, made to put `bos_id` first by itself, which is how a tokenizer.json says that the model wants it."""
        if first_token(self.core, "this tokenizer") == self.bos_id:
            return self.core
        core = tokenizers.Tokenizer.from_str(self.core.to_str())
        if self.bos_id is None:
            core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
            return core
        token = core.id_to_token(self.bos_id)
        core.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, self.bos_id)]
        )
        return core

    @classmethod
    def from_gguf(cls, settings: Mapping[str, Any], where: str | Path = "this GGUF file") -> "Tokenizer":
        """The tokenizer in a GGUF file's settings (`llmsys.models.checkpoints.gguf_file`). `where` they are from is for
        messages.

        Raises
        ------
        ValueError
            The vocabulary is no byte-level BPE, its pattern is unknown here, or a setting cannot be. Names the setting.
        """
        return cls(**read_vocabulary(settings, where))

    @classmethod
    def from_directory(cls, path: Path, *, eos_ids: Sequence[int] = ()) -> "Tokenizer":
        """tokenizer.json of a Hugging Face directory, with what the files beside it add.

        `eos_ids` are ends of a turn that the model's settings name. ValueError where a file is damaged or says what
        cannot be; it names the file and the key.
        """
        found = read_tokenizer(path)
        return cls(**found | {"eos_ids": [*found["eos_ids"], *eos_ids]})


def _whole_texts(core: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """`core`, or where it cuts texts or fills them up, a copy that does not."""
    if core.truncation is None and core.padding is None:
        return core
    core = tokenizers.Tokenizer.from_str(core.to_str())
    core.no_truncation()
    core.no_padding()
    return core
