"""Moved: this is `llmsys.attention.flash.backward_kernels` now."""

import sys

from llmsys.attention.flash import backward_kernels

sys.modules[__name__] = backward_kernels
