"""Moved: this is `llmsys.serving.sampling.sampler` now."""

import sys

from llmsys.serving.sampling import sampler

sys.modules[__name__] = sampler
