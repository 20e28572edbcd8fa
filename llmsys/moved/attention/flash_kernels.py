"""Moved: this is `llmsys.attention.flash.kernels` now."""

import sys

from llmsys.attention.flash import kernels

sys.modules[__name__] = kernels
