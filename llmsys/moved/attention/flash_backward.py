"""Moved: this is `llmsys.attention.flash.backward` now."""

import sys

from llmsys.attention.flash import backward

sys.modules[__name__] = backward
