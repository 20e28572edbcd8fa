"""Moved: this is `llmsys.attention.hopper.schedule` now."""

import sys

from llmsys.attention.hopper import schedule

sys.modules[__name__] = schedule
