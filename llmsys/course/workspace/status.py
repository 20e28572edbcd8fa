"""How far a learner is: lesson by lesson, which exercises have passed."""

from dataclasses import dataclass
from pathlib import Path

from llmsys.course import manifest
from llmsys.course.manifest import Exercise, Lesson
from llmsys.course.workspace import progress
from llmsys.course.workspace.workspace import require


@dataclass(frozen=True)
class LessonStatus:
    """How far one lesson is. `present`: its notebook is in the workspace."""

    lesson: Lesson
    present: bool
    passed: tuple[Exercise, ...]

    @property
    def points(self) -> int:
        return sum(exercise.points for exercise in self.passed)


def status(workspace: str | Path | None = None) -> list[LessonStatus]:
    """How far every lesson is, in course order."""
    workspace = require(workspace)
    passed = progress.passed(workspace)
    return [
        LessonStatus(
            lesson,
            (workspace / lesson.notebook).exists(),
            tuple(exercise for exercise in lesson.exercises if exercise.id in passed),
        )
        for lesson in manifest.lessons()
    ]
