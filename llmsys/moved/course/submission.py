"""Moved: this is `llmsys.course.grading.submission` now."""

import sys

from llmsys.course.grading import submission

sys.modules[__name__] = submission
