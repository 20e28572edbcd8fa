"""Moved: this is `llmsys.models.checkpoints.settings` now."""

import sys

from llmsys.models.checkpoints import settings

sys.modules[__name__] = settings
