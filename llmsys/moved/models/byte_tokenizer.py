"""Moved: this is `llmsys.models.text.byte_tokenizer` now."""

import sys

from llmsys.models.text import byte_tokenizer

sys.modules[__name__] = byte_tokenizer
