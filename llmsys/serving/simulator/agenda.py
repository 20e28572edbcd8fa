"""Whose turn it is: several engines, each with a clock of its own, brought forward in the order of time.

Of hundreds of engines one or two have something to say in a given millisecond; to ask each of them would take most of a
simulation's time. So it is written down when each one is next to be asked: when it changes in a way that others can
notice (`Instance.next_change`), or, where it waits for something, when it wakes. A heap says who is first. An engine in
the middle of a hundred equal steps is left alone until they are done, unless somebody comes to it.

An entry of the heap that is no longer true is left where it is, and passed over when its time comes: `_due` has what
is true.
"""

import heapq
import math

from llmsys.serving.simulator.instance import Instance


class Agenda:
    """Brings `engines` forward, those that are listed first where two are due at one time."""

    def __init__(self, engines: list[Instance]):
        self.engines = engines
        self._due: list[float] = [math.inf] * len(engines)
        self._heap: list[tuple[float, int]] = []
        self._ready: list[int] = []  # who can begin a step, but not before the time that has been reached

    def changed(self, i: int) -> None:
        """Somebody has come to the i-th engine, or left it, or it is another one."""
        engine = self.engines[i]
        self._put(i, engine.next_change(-math.inf) if engine.busy else engine.wakes)

    def leave_out(self, i: int) -> None:
        """The i-th engine does nothing, until `changed` is called."""
        self._due[i] = math.inf

    def advance_to(self, tick: float) -> None:
        """All do what ends by then, and begin what begins before."""
        ready, self._ready = self._ready, []
        for i in ready:
            if self._due[i] == -math.inf:
                self._look(i, tick)
        heap = self._heap
        while heap and heap[0][0] <= tick:
            time, i = heapq.heappop(heap)
            if self._due[i] == time:
                self.engines[i].advance_to(time)
                self._look(i, tick)

    def _look(self, i: int, tick: float) -> None:
        engine = self.engines[i]
        change = engine.next_change(tick)
        if change == math.inf and engine.wakes <= tick:
            self._due[i] = -math.inf
            self._ready.append(i)
        else:
            self._put(i, min(change, engine.wakes if change == math.inf else change))

    def _put(self, i: int, time: float) -> None:
        self._due[i] = time
        if time < math.inf:
            heapq.heappush(self._heap, (time, i))
