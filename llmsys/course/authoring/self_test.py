"""`llmsys check --self-test`: are the checks any good?

A check that accepts everything looks just like a good one until somebody's mistake slips through. So every exercise is
put to the test itself:

- its stub is recognised as not written yet, and its solution passes, within 10 s (5 s for half of the exercises);
- the library's own function is refused, there are three hints, and no text names an argument that is not there;
- each misconception (three at least) passes some property, is rejected, and is named with its own message;
- mutations of the solution's syntax tree are rejected (`llmsys.course.authoring.mutations`): < for <=, a statement left
  out, fp16 for fp32, one stride for another, an option that is forgotten where another one is set. A mutation that
  makes no difference is listed in the check's `equivalent`, with the reason.

The stubs and solutions come from the lesson's source, solutions/NN_slug.py. Everything runs in this one process.

There are 1,500 mutations, and each that is found wrong late costs a whole check. So a run draws a few of each exercise,
of different kinds, by a seed that is the date and is printed: other ones every day, and the same ones with `--seed`. It
also asks for each misconception once, and `--all` for every mutation, and each misconception twice. Time is processor
time in seconds of the reference machine (`llmsys.course.authoring.reference_time`).
"""

import argparse
import datetime
import itertools
import linecache
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from llmsys.course import manifest
from llmsys.course.authoring.mutations import Mutation, draw, mutations
from llmsys.course.authoring.names_in_texts import strange_names, texts_of
from llmsys.course.authoring.reference_time import calibrate, reference_seconds
from llmsys.course.checking.checks import Check, get_check, run_check
from llmsys.course.checking.diagnosis import Misconception, MisconceptionRunner, misconceptions_of
from llmsys.course.checking.runner import LocalRunner, resolve
from llmsys.course.checking.watch import AUTOGRAD
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import load_triton, triton_installed

CHECK_SECONDS = 10.0  # which a passing check may take: a learner waits for it
MEDIAN_SECONDS = 5.0  # which half of the checks may take


@dataclass(frozen=True)
class Draw:
    """How much of what could be tested is: a few mutations, drawn by the seed, or everything."""

    seed: int
    everything: bool = False

    @property
    def solution_seeds(self) -> tuple[int, ...]:
        """The seeds at which a solution's check runs: that of the notebook, and one that is new every day."""
        return (0, 1, 2, self.seed) if self.everything else (0, self.seed)

    @property
    def misconception_seeds(self) -> tuple[int, ...]:
        return (0, 1) if self.everything else (0,)

    def of(self, id: str, mutants: list[Mutation]) -> list[Mutation]:
        """Those of an exercise's mutations that are tested."""
        return mutants if self.everything else draw(self.seed, id, mutants)


def todays_seed() -> int:
    """The date, in UTC: 20260131."""
    return int(f"{datetime.datetime.now(datetime.UTC):%Y%m%d}")


@dataclass(frozen=True)
class Line:
    """One thing that was tested. `ok` is None where it could not be, on this machine."""

    exercise: str
    what: str
    ok: bool | None
    detail: str = ""

    def __str__(self) -> str:
        glyph = {True: "✓", False: "✗", None: "-"}[self.ok]
        return f"{glyph} {self.exercise}: {self.what}" + (f"\n    {self.detail}" if self.detail and not self.ok else "")


@dataclass(frozen=True)
class Report:
    """What the self-test found; its text is what the command prints."""

    lines: tuple[Line, ...]
    seconds: float
    draw: Draw

    @property
    def ok(self) -> bool:
        return all(line.ok is not False for line in self.lines)

    def __str__(self) -> str:
        wrong = sum(line.ok is False for line in self.lines)
        skipped = sum(line.ok is None for line in self.lines)
        mutations = "all mutations" if self.draw.everything else f"mutations drawn by --seed {self.draw.seed}"
        counts = f"{len(self.lines)} tests of the checks, {wrong} failed, {skipped} skipped"
        return "\n".join([*map(str, self.lines), f"{counts}, in {self.seconds:.1f} s; {mutations}"])


def self_test(
    only: str | None = None,
    *,
    solutions: Path | None = None,
    seed: int | None = None,
    everything: bool = False,
    progress: Callable[[Line], None] = lambda line: None,
) -> Report:
    """Test the checks of all exercises, of a lesson ("02") or of one exercise ("02.merge").

    `seed` draws the mutations (today's, if it is None), unless `everything` is tested. `progress` is called with every
    line as it comes.
    """
    if only and "." in only:
        exercises = [manifest.exercise(only)]
    else:
        chosen = [manifest.lesson(only)] if only else manifest.lessons()
        exercises = [exercise for lesson in chosen for exercise in lesson.exercises]
    if triton_installed():
        if "triton" not in sys.modules:  # a GPU machine, too, tests its kernels where their memory is watched
            os.environ.setdefault("TRITON_INTERPRET", "1")
        load_triton()  # first, before anything of torch imports Triton in its own mode
    draw = Draw(todays_seed() if seed is None else seed, everything)
    folder, start, lines = solutions or manifest.solutions_dir(), time.perf_counter(), []
    for line in _test_exercises(exercises, folder, draw):
        lines.append(line)
        progress(line)
    return Report(tuple(lines), time.perf_counter() - start, draw)


def main(arguments: list[str] | None = None) -> int:
    """Run the self-test and print what it finds. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Test the checks: stubs, solutions, misconceptions, mutations.")
    parser.add_argument("only", nargs="?", help='a lesson ("02") or an exercise ("02.merge"); default all')
    parser.add_argument("--seed", type=int, help="draws the mutations; default the date, as in 20260131")
    parser.add_argument("--all", action="store_true", help="every mutation, and each misconception at two seeds")
    asked = parser.parse_args(arguments)
    report = self_test(
        asked.only, seed=asked.seed, everything=asked.all, progress=lambda line: print(line, flush=True)
    )
    print(str(report).splitlines()[-1])
    return 0 if report.ok else 1


def _test_exercises(exercises: list[manifest.Exercise], folder: Path, draw: Draw) -> Iterator[Line]:
    seconds: dict[str, float] = {}
    for exercise in exercises:
        source = folder / f"{manifest.lesson(exercise.lesson).name}.py"
        yield from _test_exercise(exercise, source, draw, seconds)
    if len(seconds) > 1:
        middle = median(seconds.values())
        what = f"half of the {len(seconds)} checks take at most {MEDIAN_SECONDS:g} s (the median is {middle:.1f} s)"
        yield Line("all", what, middle <= MEDIAN_SECONDS, "a learner waits for them: make them smaller")


def _test_exercise(
    exercise: manifest.Exercise, source: Path, draw: Draw, seconds: dict[str, float]
) -> Iterator[Line]:
    """Test one exercise's check. What its passing check takes is noted in `seconds`."""
    if exercise.kernel and not triton_installed():
        yield Line(exercise.id, "needs Triton", None, "its answer is a Triton kernel, and Triton is not installed here")
        return
    if exercise.kernel and not sanitizer.available():
        why = "kernels are compiled in this process, and their memory is not watched: set TRITON_INTERPRET=1"
        yield Line(exercise.id, "needs the sanitizer", None, why)
        return
    try:
        check = get_check(exercise.id)
        cell = exercise_cell(source.read_text(encoding="utf-8"), exercise.id)
    except (KeyError, ValueError, OSError) as error:
        yield Line(exercise.id, "has a check and a solution", False, str(error))
        return
    yield _test_stub(check, exercise, cell)
    seconds[check.id], line = _test_solution(check, exercise, cell, draw)
    yield line
    what = f"passes within {CHECK_SECONDS:g} s (it took {seconds[check.id]:.1f} s)"
    yield Line(check.id, what, seconds[check.id] <= CHECK_SECONDS, "a learner waits for it: make it smaller")
    missing = [name for name in check.all_forbidden if not _exists(name)]
    yield Line(check.id, "what is forbidden exists", not missing, f"there is no {missing}")
    if check.reference is not None and not missing:
        yield _test_reference(check)
    yield Line(check.id, "has three hints", len(check.hints) == 3, f"it has {len(check.hints)}")
    known = misconceptions_of(check.id, kernel=exercise.kernel)
    count = len(known)
    yield Line(check.id, "ships at least three misconceptions", count >= 3, f"it has {count}")
    strange = strange_names(cell, exercise.function, texts_of(check, known))
    yield Line(check.id, "names only what the learner's function has", not strange, "; ".join(strange))
    for each in known:
        yield _test_misconception(check, each, draw)
    yield _test_no_stale_mutation(check, cell)
    yield _test_mutants(check, exercise, cell, draw, limit=2 + 3 * seconds[check.id])


def _test_stub(check: Check, exercise: manifest.Exercise, cell: str) -> Line:
    result = run_check(check, check.local_runner(load(stub(cell), exercise)))
    kind = result.failure.kind if result.failure else "passed"
    return Line(check.id, "the stub is not written yet", kind == "stub", f"it was taken for: {kind}")


def _test_solution(check: Check, exercise: manifest.Exercise, cell: str, draw: Draw) -> tuple[float, Line]:
    """What the check of the solution takes, in seconds of the reference machine, and whether it passes."""
    loop, times = calibrate(), []
    for seed in draw.solution_seeds:
        runner, start = check.local_runner(load(cell, exercise)), time.process_time()
        result = run_check(check, runner, seed=seed)
        times.append(reference_seconds(time.process_time() - start, loop))
        if not result:
            return min(times), Line(check.id, "the solution passes", False, f"seed {seed}:\n{result}")
    return min(times), Line(check.id, "the solution passes", True)  # the first one also imports


def _test_reference(check: Check) -> Line:
    result = run_check(check, check.local_runner(resolve(check.reference)))
    kind = result.failure.kind if result.failure else "passed"
    return Line(check.id, "the library's own is refused", kind == "forbidden", f"it was taken for: {kind}")


def _exists(name: object) -> bool:
    try:
        if isinstance(name, str) and (name.startswith("aten::") or name == AUTOGRAD):
            return True
        if isinstance(name, str) and name.endswith(":*"):
            return find_spec(name.partition(":")[0].rstrip("*")) is not None
        return resolve(name) is not None
    except (ImportError, AttributeError):
        return False


def _test_misconception(check: Check, known: Misconception, draw: Draw) -> Line:
    what = f"recognises {known.name}"
    for seed in draw.misconception_seeds:
        result = run_check(check, MisconceptionRunner(check, known), seed=seed)
        if result:
            return Line(check.id, what, False, "the check accepts it")
        if not any(each.passed for each in result.properties):
            return Line(check.id, what, False, f"it passes no property: nobody would write it\n{result}")
        if result.misconception is None or result.misconception.message != known.message:
            named = result.misconception.name if result.misconception else "nothing"
            return Line(check.id, what, False, f"it was taken for {named}\n{result}")
    return Line(check.id, what, True)


def _test_no_stale_mutation(check: Check, cell: str) -> Line:
    stale = sorted(set(check.equivalent) - {each.text for each in mutations(cell)})
    return Line(check.id, "every mutation called equivalent exists", not stale, "; ".join(stale))


def _test_mutants(check: Check, exercise: manifest.Exercise, cell: str, draw: Draw, limit: float) -> Line:
    every = list(mutations(cell))
    chosen = draw.of(check.id, [each for each in every if each.text not in check.equivalent])
    survivors = [each.text for each in chosen if not _rejected(check, exercise, each, limit)]
    what = f"rejects {len(chosen)} of {len(every)} mutations of the solution"
    return Line(check.id, what, not survivors, "it accepts: " + "; ".join(survivors))


def _rejected(check: Check, exercise: manifest.Exercise, mutant: Mutation, limit: float) -> bool:
    """Whether the check rejects that mutation, or it takes more than `limit` seconds, or it cannot even be defined. A
    compiler that refuses a condition which only a mutation has proves nothing."""
    compiled = mutant.kind != "options"
    try:
        # The solution calls nothing forbidden, and a mutation of it does not either: watching costs twice the time.
        function = load(mutant.source, exercise)
        runner = LocalRunner(function, adapt=check.adapt, kernel=check.kernel, build=check.build, seconds=limit)
        return not run_check(check, runner, name_mistakes=False, compile_kernels=compiled)
    except Exception:
        return True


# Cells of a lesson's source


def exercise_cell(source: str, id: str) -> str:
    """The exercise's cell in a lesson's source (jupytext's py:percent). Raises ValueError unless there is just one."""
    cells = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    named = f'exercise="{id}"'
    heads = zip(cells[1::2], cells[2::2], strict=True)
    found = [text for head, text in heads if '"exercise"' in head and named in head]
    if len(found) != 1:
        raise ValueError(f"expected one exercise cell {id}, found {len(found)}")
    return found[0].rstrip() + "\n"


def stub(cell: str) -> str:
    """The cell as a learner gets it: what is between the solution's marks is to be written."""
    pattern = r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION"
    return re.sub(pattern, r"\1raise NotImplementedError", cell, flags=re.MULTILINE | re.DOTALL)


_numbers = itertools.count()


def load(source: str, exercise: manifest.Exercise) -> object:
    """Run a cell in a namespace of its own, and return what it defines under the exercise's name. Its source can be
    looked up, as Triton does."""
    name = f"<{exercise.id} {next(_numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict = {"__name__": "llmsys_self_test"}
    exec(compile(source, name, "exec"), namespace)
    return namespace[exercise.function]


if __name__ == "__main__":
    sys.exit(main())
