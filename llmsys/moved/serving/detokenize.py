"""Moved: this is `llmsys.serving.responses.detokenize` now."""

import sys

from llmsys.serving.responses import detokenize

sys.modules[__name__] = detokenize
