"""Moved: this is `llmsys.serving.telemetry.metrics` now."""

import sys

from llmsys.serving.telemetry import metrics

sys.modules[__name__] = metrics
