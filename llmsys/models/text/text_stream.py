"""Text while its tokens come: what is said of it is never taken back.

A token is a string of bytes, and a character may be spread over several tokens. So what a tokenizer decodes may end in
text that the next token changes. How it does, depends on the decoder that the tokenizer's file names:

    ByteLevel (GPT-2, Llama 3, SmolLM2)   half a character is U+FFFD, until the rest of it comes
    ByteFallback (Llama 2, Mistral)       tokens <0xE2> … in a row are text together: one byte too many, or too few, and
                                          *each* of them is U+FFFD, those of whole characters among them, too
    Metaspace, WordPiece, Strip           the first token of a text loses the space before it

The rule here knows none of them by name. Text is said when it does not end in U+FFFD, and when it would still stand if
the next token were a byte that belongs to nothing. So of a row of byte tokens nothing is said before the row is over.

Most tokens are whole characters, though, and a tokenizer that knows which (`Tokenizer.texts`) is asked first: that is
a look-up, where to decode is several calls for each token of each of hundreds of requests.
"""

from collections.abc import Sequence
from operator import index
from typing import Protocol, SupportsIndex, runtime_checkable

import tokenizers


@runtime_checkable
class Decoder(Protocol):
    """What a stream wants of a tokenizer: `llmsys.models.Tokenizer` has it."""

    core: tokenizers.Tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""


class TextStream:
    """Token ids in, text out, as soon as no further token can change it.

    The pieces of `push`, then `flush`, joined, are `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Decoder):
        self._tokenizer = tokenizer
        self._said: list[int] = []  # ids of the last piece: a decoder strips the space before a text's first word
        self._waiting: list[int] = []
        self._stray = _stray_byte(tokenizer.core)
        self._texts = getattr(tokenizer, "texts", None)

    def push(self, token: SupportsIndex) -> str:
        """The text that is complete now that `token` came; often, and in the middle of a character, nothing."""
        token = index(token)
        if not self._waiting and self._texts is not None and (text := self._texts[token]):
            self._said = [token]
            return text
        self._waiting.append(token)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):  # perhaps the beginning of a character
            return ""
        if self._stray is not None and not self._new_text(self._stray).startswith(text):
            return ""
        self._end_piece()
        return text

    def flush(self) -> str:
        """What is left at the end; bytes of an unfinished character are U+FFFD."""
        text = self._new_text()
        self._end_piece()
        return text

    def _new_text(self, *more: int) -> str:
        """What the waiting ids, and `more` after them, add to the text before them."""
        before = self._tokenizer.decode(self._said) if self._said else ""
        return self._tokenizer.decode([*self._said, *self._waiting, *more])[len(before) :]

    def _end_piece(self) -> None:
        # Ids of no text, or of a stripped space alone, do not show that there is a text before.
        self._said = self._waiting if self._tokenizer.decode(self._waiting) else self._said + self._waiting
        self._waiting = []


def _stray_byte(core: tokenizers.Tokenizer) -> int | None:
    """The token of a byte that ends no character, where bytes have tokens of their own: <0xFF>, or the next below it.

    None where there is none above 0x7F: single bytes are characters then, and cannot be wrong.
    """
    names = (form.format(byte) for byte in range(0xFF, 0x7F, -1) for form in ("<0x{:02X}>", "<0x{:02x}>"))
    return next((id for id in map(core.token_to_id, names) if id is not None), None)
