"""The two pictures in lessons/images that the README shows: the map of the course, and the speed of attention.

    python -m llmsys.course.authoring.readme_pictures

They are committed, because a web page that shows the README draws nothing. Run this again after a lesson has been added
or attention has been measured anew; a test compares the files with what is drawn.
"""

import sys
from pathlib import Path

from llmsys.bench import recorded
from llmsys.course.manifest import lessons, lessons_dir, planned
from llmsys.viz.charts import attention_speed
from llmsys.viz.course import cover
from llmsys.viz.kit import Picture


def readme_pictures() -> dict[str, Picture]:
    """The pictures by the name of their file."""
    return {
        "course.svg": cover(lessons(), planned()),
        "attention_speed.svg": attention_speed(recorded("attention"), framed=True),
    }


def main() -> None:
    """Write the pictures into lessons/images, or into the directory that the command line names."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else lessons_dir() / "images"
    for name, picture in readme_pictures().items():
        print(picture.save(directory / name))


if __name__ == "__main__":
    main()
