"""One token by itself, as text and as bytes.

A byte-level vocabulary writes each byte as a character that can be printed: those that can be are themselves, the other
68 are U+0100 and following, in order (GPT-2's `encoder.py`). So the bytes of a token can be read off its name, also
where they are no whole character.
"""

from tokenizers import decoders

from llmsys.models import Tokenizer

PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in PRINTED}
BYTES |= {chr(0x100 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in set(PRINTED))}


class TokenText:
    """The tokens of a model."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._by_byte = isinstance(tokenizer.core.decoder, decoders.ByteLevel)
        self._added = set(tokenizer.core.get_added_tokens_decoder())

    def bytes(self, token: int) -> bytes:
        """Its bytes; of a special token those of its name."""
        name = self._tokenizer.core.id_to_token(token)
        if name is None:  # a vocabulary may be filled up to a round number
            return b""
        if self._by_byte and token not in self._added and all(letter in BYTES for letter in name):
            return bytes(BYTES[letter] for letter in name)
        return self._tokenizer.decode([token], special=True).encode()

    def plain(self, token: int) -> str:
        """What it adds to a text: of half a character, and of a special token, nothing."""
        text = self._tokenizer.decode([token])
        return "" if "\ufffd" in text else text

    def shown(self, token: int) -> str:
        """Its text, or where it is no text, `bytes:\\xe2\\x9c`."""
        found = self.bytes(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
