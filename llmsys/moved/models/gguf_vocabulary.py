"""Moved: this is `llmsys.models.checkpoints.gguf_vocabulary` now."""

import sys

from llmsys.models.checkpoints import gguf_vocabulary

sys.modules[__name__] = gguf_vocabulary
