"""Moved: this is `llmsys.attention.hopper.kernels` now."""

import sys

from llmsys.attention.hopper import kernels

sys.modules[__name__] = kernels
