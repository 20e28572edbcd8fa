"""Moved: this is `llmsys.models.text.tokenizer` now."""

import sys

from llmsys.models.text import tokenizer

sys.modules[__name__] = tokenizer
