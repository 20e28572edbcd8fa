"""Moved: this is `llmsys.models.text.prompt` now."""

import sys

from llmsys.models.text import prompt

sys.modules[__name__] = prompt
