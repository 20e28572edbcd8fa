"""Moved: this is `llmsys.models.checkpoints.weights` now."""

import sys

from llmsys.models.checkpoints import weights

sys.modules[__name__] = weights
