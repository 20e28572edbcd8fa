"""Moved: this is `llmsys.attention.hopper.backward_rows` now."""

import sys

from llmsys.attention.hopper import backward_rows

sys.modules[__name__] = backward_rows
