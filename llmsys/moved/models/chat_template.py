"""Moved: this is `llmsys.models.text.chat_template` now."""

import sys

from llmsys.models.text import chat_template

sys.modules[__name__] = chat_template
