"""How a script's lines are judged, and how a wrong one is shown: with the calls that led to it."""

from collections.abc import Callable

from llmsys.course.checking.answer import Answer, Run

BEFORE = 6  # calls that are shown before the one that is wrong


def agreeing(answer: Answer) -> Callable[..., Run]:
    """`agrees(num_blocks, block_size, *calls)`: each of these calls does to the answer's pool what it does to the
    library's."""

    def agrees(num_blocks: int, block_size: int, *calls: list, **options) -> Run:
        given = {"num_blocks": num_blocks, "block_size": block_size, "script": list(calls), **options}
        expected = answer.reference(**given)
        run = answer(**given)
        wrong = _first_difference(run.value, expected)
        answer.that(
            run, lambda r: r.value == expected,
            expected="" if wrong is None else _explained(_shown(expected, wrong)), got=lambda r: _shown(r.value, wrong),
        )  # fmt: skip
        return run

    return agrees


def constant(answer: Answer, script: str, sizes: list[int]) -> None:
    """No call of that life costs more in the larger pool."""
    run = answer(num_blocks=sizes, block_size=4, script=script)
    answer.that(
        run, lambda r: r.value == [],
        "as many steps in a large pool as in a small one: lines that run, and elements that are gone through in one",
        got=lambda r: "more steps in the larger pool:\n" + "\n".join(map(str, r.value)),
    )  # fmt: skip


def _first_difference(got: object, expected: list[str]) -> int | None:
    if not isinstance(got, list):
        return 0
    differing = (n for n, line in enumerate(expected) if n >= len(got) or got[n] != line)
    return next(differing, None)


def _explained(lines: str) -> str:
    """The lines, and what those words in them mean that are no methods."""
    words = {"begin": "match, allocate and register", "admit": "match and allocate", "append": "extend"}
    used = [f"{word} is {meaning}" for word, meaning in words.items() if f"{word}(" in lines]
    return (f"({'; '.join(used)})" if used else "") + "\n" + lines


def _shown(lines: object, last: int) -> str:
    if not isinstance(lines, list):
        return str(lines)
    first = max(last - BEFORE, 0)
    return "\n".join([*(["…"] if first else []), *lines[first : last + 1]])
