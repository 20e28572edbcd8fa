"""Moved: this is `llmsys.serving.sampling.draw_kernels` now."""

import sys

from llmsys.serving.sampling import draw_kernels

sys.modules[__name__] = draw_kernels
