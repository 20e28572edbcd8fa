"""Moved: this is `llmsys.models.checkpoints.safetensors_files` now."""

import sys

from llmsys.models.checkpoints import safetensors_files

sys.modules[__name__] = safetensors_files
