"""Moved: this is `llmsys.attention.hopper.fp8` now."""

import sys

from llmsys.attention.hopper import fp8

sys.modules[__name__] = fp8
