"""Moved: this is `llmsys.course.workspace.notebook` now."""

import sys

from llmsys.course.workspace import notebook

sys.modules[__name__] = notebook
