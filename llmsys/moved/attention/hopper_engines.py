"""Moved: this is `llmsys.attention.hopper.simulated.engines` now."""

import sys

from llmsys.attention.hopper.simulated import engines

sys.modules[__name__] = engines
