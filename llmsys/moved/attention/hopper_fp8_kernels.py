"""Moved: this is `llmsys.attention.hopper.fp8_kernels` now."""

import sys

from llmsys.attention.hopper import fp8_kernels

sys.modules[__name__] = fp8_kernels
