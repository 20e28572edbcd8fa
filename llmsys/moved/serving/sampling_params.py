"""Moved: this is `llmsys.serving.sampling.sampling_params` now."""

import sys

from llmsys.serving.sampling import sampling_params

sys.modules[__name__] = sampling_params
