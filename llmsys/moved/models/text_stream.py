"""Moved: this is `llmsys.models.text.text_stream` now."""

import sys

from llmsys.models.text import text_stream

sys.modules[__name__] = text_stream
