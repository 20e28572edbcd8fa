"""Moved: this is `llmsys.models.text.special_tokens` now."""

import sys

from llmsys.models.text import special_tokens

sys.modules[__name__] = special_tokens
