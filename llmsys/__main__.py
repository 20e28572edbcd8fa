"""`python -m llmsys`: the command line, where the `llmsys` script is not on the path."""

from llmsys.course.cli import main

if __name__ == "__main__":
    main()
