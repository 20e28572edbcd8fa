"""Moved: this is `llmsys.attention.hopper.backward` now."""

import sys

from llmsys.attention.hopper import backward

sys.modules[__name__] = backward
