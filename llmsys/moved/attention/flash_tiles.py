"""Moved: this is `llmsys.attention.flash.tiles` now."""

import sys

from llmsys.attention.flash import tiles

sys.modules[__name__] = tiles
