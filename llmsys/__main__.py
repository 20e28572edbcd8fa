"""`python -m llmsys`: the command line, where the `llmsys` script is not on the path.

Python puts the folder in which it is started on the path. In a folder that somebody handed in, a `torch.py` would be
taken for torch; so that folder goes, before anything else is imported, unless this package is in it.
"""

import sys

if not sys.flags.safe_path and sys.path and __file__.rpartition("llmsys")[0].rstrip("/\\") != sys.path[0]:
    del sys.path[0]

from llmsys.course.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
