"""Moved: this is `llmsys.course.workspace.progress` now."""

import sys

from llmsys.course.workspace import progress

sys.modules[__name__] = progress
