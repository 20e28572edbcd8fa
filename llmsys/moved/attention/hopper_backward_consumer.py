"""Moved: this is `llmsys.attention.hopper.backward_consumer` now."""

import sys

from llmsys.attention.hopper import backward_consumer

sys.modules[__name__] = backward_consumer
