"""How much a test does: the short form, which `make test` runs, or the full one of `make test-all`.

    from tests.support.size import FULL, sized

    @pytest.mark.parametrize("seed", range(sized(short=3, full=50)))
    def test_every_schedule_is_legal(seed): ...

    @pytest.mark.long          # left out of `make test` altogether
    def test_an_hour_of_requests(): ...

The short form tests the same properties on less: fewer seeds, schedules, mutants, lessons. LLMSYS_TESTS=all in the
environment asks for the full form. What the short form draws, it draws by the date, which a run prints:
LLMSYS_TESTS_DATE=2026-11-28 draws as on that day.
"""

import datetime
import os
import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("LLMSYS_TESTS", "") == "all"
# Kept in the environment: the workers of a run that goes on past midnight draw alike.
DATE = os.environ.setdefault("LLMSYS_TESTS_DATE", datetime.date.today().isoformat())
SEED = int(DATE.replace("-", ""))  # the same as a number


def sized(*, short: T, full: T) -> T:
    """`full` where the full form was asked for, else `short`."""
    return full if FULL else short


def drawn(cases: Iterable[T], short: int) -> list[T]:
    """All of them in the full form; in the short one so many, others every day."""
    every = list(cases)
    return random.Random(SEED).sample(every, sized(short=min(short, len(every)), full=len(every)))
