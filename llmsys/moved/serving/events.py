"""Moved: this is `llmsys.serving.telemetry.events` now."""

import sys

from llmsys.serving.telemetry import events

sys.modules[__name__] = events
