"""Moved: this is `llmsys.attention.hopper.simulated.processor` now."""

import sys

from llmsys.attention.hopper.simulated import processor

sys.modules[__name__] = processor
