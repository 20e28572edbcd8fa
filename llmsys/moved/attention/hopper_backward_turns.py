"""Moved: this is `llmsys.attention.hopper.backward_turns` now."""

import sys

from llmsys.attention.hopper import backward_turns

sys.modules[__name__] = backward_turns
