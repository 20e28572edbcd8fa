"""Moved: this is `llmsys.attention.hopper.consumer` now."""

import sys

from llmsys.attention.hopper import consumer

sys.modules[__name__] = consumer
