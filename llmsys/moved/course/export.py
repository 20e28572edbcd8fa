"""Moved: this is `llmsys.course.workspace.mine` now."""

import sys

from llmsys.course.workspace import mine

sys.modules[__name__] = mine
