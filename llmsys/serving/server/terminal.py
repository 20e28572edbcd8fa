"""A conversation in a terminal: what `llmsys chat` is made of, and a small client of the API with the standard library.

    talk = Conversation("http://127.0.0.1:8000")
    for piece in talk.say("Name a colour."):
        print(piece, end="", flush=True)

An answer that is not read to its end hangs up, and the server stops computing it.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

TIMEOUT = 600
"""Seconds without a word, as when a long prompt is read on a CPU."""


class ChatError(Exception):
    """The server cannot be reached, or refuses. The message says what to do."""


class Conversation:
    """Messages back and forth. `options` go into every request: temperature, max_tokens …"""

    def __init__(self, url: str, *, api_key: str | None = None, system: str | None = None, **options: Any):
        self.url = url.rstrip("/")
        self._key, self._options = api_key, {name: value for name, value in options.items() if value is not None}
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, str]] = list(self._system)

    def model(self) -> str:
        """What is served. ChatError where nobody is there."""
        with self._open("/v1/models") as answer:
            return json.load(answer)["data"][0]["id"]

    def forget(self) -> None:
        """Begins another conversation."""
        self.messages = list(self._system)

    def say(self, text: str) -> Iterator[str]:
        """The answer, a piece at a time. What was said is kept if there is an answer, or the beginning of one."""
        asked, said = {"role": "user", "content": text}, []
        body = {"messages": [*self.messages, asked], "stream": True, **self._options}
        try:
            with self._open("/v1/chat/completions", body) as answer:
                for chunk in _events(answer):
                    if error := chunk.get("error"):
                        raise ChatError(error["message"])
                    if piece := chunk["choices"][0]["delta"].get("content"):
                        said.append(piece)
                        yield printable(piece)
        except OSError as error:
            raise ChatError(f"the connection to {self.url} broke: {error}") from None
        finally:
            if said:
                self.messages += [asked, {"role": "assistant", "content": "".join(said)}]

    def _open(self, path: str, body: dict | None = None):
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                raise ChatError(_message(error)) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise ChatError(f"there is no server at {self.url} ({why}): start one with `llmsys serve`") from None


def printable(text: str) -> str:
    """Without control characters, with which a text could take over a terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or not (letter < " " or "\x7f" <= letter <= "\x9f"))


def _events(answer) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.startswith(b"data: "):
            if (data := line[6:].strip()) == b"[DONE]":
                return
            yield json.loads(data)
    raise ChatError("the connection ended before the answer did")


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}: is it one of `llmsys serve`?"
