"""Moved: this is `llmsys.serving.sampling.draw` now."""

import sys

from llmsys.serving.sampling import draw

sys.modules[__name__] = draw
