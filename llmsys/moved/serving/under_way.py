"""Moved: this is `llmsys.serving.responses.under_way` now."""

import sys

from llmsys.serving.responses import under_way

sys.modules[__name__] = under_way
