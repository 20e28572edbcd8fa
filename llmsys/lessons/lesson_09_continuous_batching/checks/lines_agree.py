"""How the lines of a played script are judged, and how a wrong one is shown: with the steps that led to it."""

from collections.abc import Callable

from llmsys.course.checking.answer import Answer, Run

BEFORE = 5  # steps that are shown before the one that is wrong


def agreeing(answer: Answer) -> Callable[..., Run]:
    """`agrees(*script, budget=…, sequences=…)`: each step does with these requests what the library's does."""

    def agrees(*script: list, **settings) -> Run:
        given = {"script": list(script), **settings}
        expected = answer.reference(**given)
        run = answer(**given)
        wrong = _first_difference(run.value, expected)
        answer.that(
            run, lambda r: r.value == expected,
            expected="" if wrong is None else _explained(_shown(expected, wrong)), got=lambda r: _shown(r.value, wrong),
        )  # fmt: skip
        return run

    return agrees


def add(turn: int, name: str, prompt: int | list[int], output: int) -> list:
    """A script's line: a request whose prompt has these tokens, or so many that no other one begins with."""
    if isinstance(prompt, int):
        prompt = [1000 + sum(map(ord, name)), *range(prompt - 1)]
    return [turn, "add", name, prompt, output]


def _first_difference(got: object, expected: list[str]) -> int | None:
    if not isinstance(got, list):
        return 0
    longer = max(len(got), len(expected))
    return next((n for n in range(longer) if got[n : n + 1] != expected[n : n + 1]), None)


def _explained(lines: str) -> str:
    """The lines, and what the numbers in them are."""
    words = ["0+3: none was computed before, three are now"]
    if " hit" in lines:
        words.append("hit: tokens that were found")
    words.append("script: before which step, what, whose, the prompt, how many tokens are wanted")
    return f"({'; '.join(words)})\n{lines}"


def _shown(lines: object, last: int) -> str:
    if not isinstance(lines, list):
        return str(lines)
    first = max(last - BEFORE, 0)
    end = [] if last < len(lines) else ["(no more steps)"]
    return "\n".join([*(["…"] if first else []), *lines[first : last + 1], *end])
