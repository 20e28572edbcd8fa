"""Moved: this is `llmsys.models.checkpoints.huggingface` now."""

import sys

from llmsys.models.checkpoints import huggingface

sys.modules[__name__] = huggingface
