"""Moved: this is the package `llmsys.cache` now."""

import sys

from llmsys import cache

sys.modules[__name__] = cache
