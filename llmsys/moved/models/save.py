"""Moved: this is `llmsys.models.checkpoints.save` now."""

import sys

from llmsys.models.checkpoints import save

sys.modules[__name__] = save
