"""Moved: this is `llmsys.attention.hopper.gluon` now."""

import sys

from llmsys.attention.hopper import gluon

sys.modules[__name__] = gluon
