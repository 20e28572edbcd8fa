"""Moved: this is `llmsys.attention.hopper.ring` now."""

import sys

from llmsys.attention.hopper import ring

sys.modules[__name__] = ring
