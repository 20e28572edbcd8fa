"""Moved: this is `llmsys.serving.telemetry.progress` now."""

import sys

from llmsys.serving.telemetry import progress

sys.modules[__name__] = progress
