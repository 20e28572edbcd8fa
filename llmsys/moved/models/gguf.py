"""Moved: this is `llmsys.models.checkpoints.gguf` now."""

import sys

from llmsys.models.checkpoints import gguf

sys.modules[__name__] = gguf
