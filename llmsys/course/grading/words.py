"""Texts that come from strangers, made fit to be shown: what a process said, what a folder is called.

A report goes to terminals, which obey escape sequences; into XML, which allows no control characters; and into files in
UTF-8, which has no room for half a character.
"""

import os
import re

TEXT_LIMIT = 4000  # characters of any text that a worker sends

_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")


def clean(text: str) -> str:
    """Text of a learner's as it may be shown: without escape sequences and control characters, and not too long."""
    text = _ANSI.sub("", text.replace("\r\n", "\n"))
    kept = "".join(c for c in text if c in "\n\t" or c.isprintable())
    return kept if len(kept) <= TEXT_LIMIT else kept[:TEXT_LIMIT] + " …"


def shown_name(name: str) -> str:
    """A file's name as it may be shown, one for each: what is no letter of UTF-8, or cannot be seen, as in Python."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
