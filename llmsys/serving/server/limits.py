"""How much one client, and all of them together, may ask for; and the door, which says "not now" to those for whom
there is no room.

**Where requests wait.** There is one queue, the scheduler's: it knows who shares a prefix with whom, and admits in the
order of arrival. The door counts answers from their request's arrival to their end. Up to `running` of them compute
side by side, `waiting` more may wait, and who comes then gets 429 at once, for a queue that grows without bound helps
nobody: its last client has given up before its turn. `Retry-After` is how long it took lately for so many answers to
end as are in the way.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from llmsys.models.sampling import whole_number
from llmsys.serving.server.errors import ApiError

LONGEST_RETRY = 60  # seconds


@dataclass(frozen=True)
class Limits:
    """ValueError where one is not a whole number of at least 1 (`waiting`: 0)."""

    body_bytes: int = 1 << 20
    """Of a request."""
    client_seconds: int = 30
    """For a client to send the head of a request, and then its body; and to read something of what it is sent."""
    prompt_tokens: int | None = None
    """None: what the model has room for."""
    answers: int = 16
    """To one request: its prompts times `n`. Never more than `running` and `waiting` together: those have no room."""
    running: int = 256
    """Answers that are computed side by side: the engine's `max_sequences`."""
    waiting: int = 1024
    """Answers that wait for that."""
    drain_seconds: int = 30
    """For those under way, when the server is told to stop."""

    def __post_init__(self):
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None or each.name != "prompt_tokens":
                whole_number(each.name, value, at_least=0 if each.name == "waiting" else 1)


class Door:
    """Counts the answers inside, and keeps others out when there are `most`."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic):
        self.most, self.inside = most, 0
        self._clock = clock
        self._left: deque[float] = deque(maxlen=64)  # when the last ones left

    @contextmanager
    def pass_through(self, answers: int) -> Iterator[None]:
        """A block for a request of so many answers. ApiError 429 where there is no room for all of them."""
        missing = self.inside + answers - self.most
        if missing > 0:
            seconds = self.retry_after(missing)
            what = f"too many requests: {self.inside} answers are under way, of at most {self.most}"
            raise ApiError(
                429, f"{what}. Try again in {seconds} s", code="overloaded", headers={"Retry-After": str(seconds)}
            )
        self.inside += answers
        try:
            yield
        finally:
            self.inside -= answers
            self._left.extend([self._clock()] * answers)

    def retry_after(self, answers: int) -> int:
        """Whole seconds until so many have left, at the pace of late; 1 where nobody has left yet."""
        if not self._left:
            return 1
        took = self._clock() - self._left[0]
        return max(1, min(LONGEST_RETRY, math.ceil(took * answers / len(self._left))))
