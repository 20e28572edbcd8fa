"""Moved: this is `llmsys.serving.responses.response` now."""

import sys

from llmsys.serving.responses import response

sys.modules[__name__] = response
