"""Which of many configurations a run of the tests takes: those that matter most, and a few more that change every day.

With LLMSYS_TESTS=all in the environment a run takes all of them. LLMSYS_TESTS_DATE=2026-11-28 draws as on that day.
"""

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tests.support.size import DATE, FULL

T = TypeVar("T")


def examples(n: int) -> int:
    """How many examples hypothesis draws where each takes long: n in the full form, else half of them."""
    return n if FULL else n // 2


def sample(items: Iterable[T], n: int, *, always: Sequence[T] = ()) -> list[T]:
    """Those of `always`, and n others of the items, drawn by today's date; all items in the full form.

    It prints how many it took and on which day, which pytest shows where a test fails.
    """
    rest = [item for item in items if item not in always]
    taken = rest if FULL else random.Random(DATE).sample(rest, n)
    print(f"{len(always) + len(taken)} of {len(always) + len(rest)} configurations, drawn for LLMSYS_TESTS_DATE={DATE}")
    return [*always, *taken]
