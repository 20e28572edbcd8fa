"""Who waits for whom, from what each rank has written about its calls.

A receive waits for the sender, a send for the receiver, a collective for those members of its group that have not come
to it. A rank that waits for one that waits for it, directly or by way of others, waits for ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmsys.parallel.ranks.record import Call, Written


@dataclass(frozen=True)
class State:
    """A rank when it was looked at. `is_over` is "" while it runs, else how it ended: "has returned"."""

    written: Written
    is_over: str = ""

    @property
    def call(self) -> Call | None:
        """What it is stuck in."""
        return None if self.is_over else self.written.waiting


def waits_for(rank: int, states: Mapping[int, State]) -> list[int]:
    """The ranks for which a rank waits; none if it is in no call, or in a collective to which all have come."""
    call = states[rank].call
    if call is None:
        return []
    if not call.collective:
        return [call.peer] if call.peer is not None else [each for each in call.members if each != rank]
    others = [each for each in call.members if each != rank and each in states]
    return [each for each in others if states[each].written.begun.get(call.group, 0) < call.number]


def odd_one_out(rank: int, states: Mapping[int, State]) -> str:
    """In words, that a member of the group came to the same collective with another call; "" if none did."""
    mine = states[rank].call
    if mine is None or not mine.collective:
        return ""
    others = ((other, call) for other, state in states.items() if other != rank for call in state.written.unfinished)
    for other, call in others:
        same_turn = call.collective and (call.group, call.number) == (mine.group, mine.number)
        if same_turn and (call.name, call.tensor) != (mine.name, mine.tensor):
            return f"rank {other} calls {call.name} of {call.tensor or 'nothing'} instead, at {call.place}"
    return ""


def circle(states: Mapping[int, State]) -> list[int]:
    """Ranks each of which waits for the next one, and the last for the first; empty if there are none."""
    done: set[int] = set()
    for start in states:
        path: list[int] = []
        stack = [(start, iter(waits_for(start, states)))] if start not in done else []
        path += [start] if stack else []
        while stack:
            rank, others = stack[-1]
            following = next((each for each in others if each in states and each not in done), None)
            if following is None:
                done.add(rank)
                stack.pop()
                path.pop()
            elif following in path:
                return path[path.index(following) :]
            else:
                path.append(following)
                stack.append((following, iter(waits_for(following, states))))
    return []


def describe(rank: int, states: Mapping[int, State], now: float) -> str:
    """What a rank does, in one line. `now` is a time of `time.monotonic()`."""
    state = states[rank]
    last = state.written.last
    if state.is_over:
        return f"rank {rank} {state.is_over}"
    if (call := state.call) is None:
        before = f"; its last one was {last}" if last else "; it has made none"
        begun = [f"; not waited for yet: {each}" for each in state.written.unfinished[:3]]
        return f"rank {rank} is in no communication call{before}{''.join(begun)}"
    whom = waits_for(rank, states)
    those = [f"rank {each}" + (f" (which {over})" if (over := states[each].is_over) else "") for each in whom[:8]]
    more = f" and {len(whom) - 8} others" if len(whom) > 8 else ""
    waiting = f"waits for {' and '.join(those)}{more}" if whom else "is in a call to which all have come"
    odd = odd_one_out(rank, states)
    return f"rank {rank} {waiting}, since {max(now - call.began, 0.0):.1f} s: {call}{f'; {odd}' if odd else ''}"
