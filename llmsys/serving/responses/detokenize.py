"""A request's text, while its tokens come: whole characters, and never a piece of a stop string.

    text = Detokenizer(tokenizer, stop=["\\n\\n", "User:"])
    for token in tokens:
        print(text.push(token), end="")
        if text.stopped is not None:                # the stop string that came
            break
    print(text.finish(), end="")                    # what was held back

Two things may be at the end of a text that the next token changes. A character whose bytes are spread over tokens is
`llmsys.models.text.text_stream`'s matter. Here it is the beginning of a stop string: "Us" may become "User:", which
nobody must see, or "Use it", so it is held back until that is known. At most one character less than the longest stop
string is held. (Special tokens are of no text, so they are no part of a stop string: name them as stop tokens.)

A stop string is found where its last character comes, in whatever tokens its characters lie, its first ones perhaps in
one token with text before it, its last ones with text behind. The text ends before it. Where several come, it is the
first that is complete which counts, and of those that end together the longest: what one reads does not depend on how
the text was cut into tokens.
"""

from collections.abc import Sequence

from llmsys.models.text.text_stream import Decoder, TextStream


class Detokenizer:
    """Tokens in, text out, up to the first stop string.

    Parameters
    ----------
    tokenizer
        The model's. None where there is none: then there is no text, and no stop string can come.
    stop
        Strings that end the text.

    Attributes
    ----------
    stops : tuple of str
    stopped : str or None
        The stop string that came. Tokens after that are of no text.
    """

    def __init__(self, tokenizer: Decoder | None, stop: Sequence[str] = ()):
        if isinstance(stop, str) or not all(isinstance(each, str) and each for each in stop):
            raise ValueError(f"stop must be a list of strings, none of them empty, got {stop!r}")
        if tokenizer is None and stop:
            raise ValueError("stop needs a model with a tokenizer, for strings are looked for in text: use stop tokens")
        self._stream = None if tokenizer is None else TextStream(tokenizer)
        self.stops = tuple(stop)
        self._held = ""
        self._said: list[str] = []
        self.stopped: str | None = None

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "".join(self._said)

    def push(self, token: int) -> str:
        """The text that may be said now that `token` came."""
        if self._stream is None or self.stopped is not None:
            return ""
        new = self._stream.push(token)
        if self.stops:
            return self._say(new)
        self._said.append(new)
        return new

    def finish(self) -> str:
        """The rest, when no more tokens come. It may still hold a stop string."""
        if self._stream is None or self.stopped is not None:
            return ""
        said = self._say(self._stream.flush())
        rest, self._held = self._held, ""
        return said + self._add(rest)

    def _say(self, new: str) -> str:
        text, self._held = self._held + new, ""
        if found := self._first_stop(text):
            start, self.stopped = found
            return self._add(text[:start])
        kept = self._beginning_of_a_stop(text)
        self._held = text[len(text) - kept :]
        return self._add(text[: len(text) - kept])

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Where it begins, and which: the one that ends first, and of several the longest."""
        ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in self.stops if stop in text]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end - len(stop), stop

    def _beginning_of_a_stop(self, text: str) -> int:
        """How many of the last characters may become a stop string."""
        longest = min(len(text), max(map(len, self.stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self.stops)), 0)

    def _add(self, text: str) -> str:
        if text:
            self._said.append(text)
        return text
