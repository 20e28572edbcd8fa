"""Moved: this is `llmsys.models.checkpoints.gguf_file` now."""

import sys

from llmsys.models.checkpoints import gguf_file

sys.modules[__name__] = gguf_file
