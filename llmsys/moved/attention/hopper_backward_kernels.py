"""Moved: this is `llmsys.attention.hopper.backward_kernels` now."""

import sys

from llmsys.attention.hopper import backward_kernels

sys.modules[__name__] = backward_kernels
