"""Orders and roles as plain data, and what comes of them.

What goes from the learner's process to the grader's is plain data. So the actions of an order (06.order) go as their
names and numbers, those of a role (06.ring) with its barriers by name. The grader's process runs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

from llmsys.hardware import mbarrier, sm

SCHEDULES = {each.__name__: each for each in (sm.Load, sm.Scores, sm.Softmax, sm.Output, sm.Wait, sm.Turn, sm.Pass)}


def plain_order(function: Callable) -> Callable:
    """The order's actions as lists of names and numbers: [["Load", "K", 0], …] for each program."""

    def order(tiles: int, warpgroups: int) -> list[list[list]]:
        programs = function(tiles, warpgroups)
        if not isinstance(programs, list) or not all(isinstance(each, Sequence) for each in programs):
            raise TypeError(f"order must return a list of lists of actions, got {programs!r:.80}")
        return [[_plain_action(each) for each in program] for program in programs]

    return order


def _plain_action(action) -> list:
    name = type(action).__name__
    if SCHEDULES.get(name) is not type(action):
        raise TypeError(f"{action!r:.60} is no action: Load, Scores, Softmax, Output, Wait, Turn and Pass are")
    return [name, *(getattr(action, field.name) for field in fields(action))]


def run_order(programs: list, warpgroups: int, tiles: int, D: int) -> sm.Timeline | str:
    """What an SM makes of it: a timeline, or what is wrong, in words."""
    try:
        actions = [[SCHEDULES[name](*rest) for name, *rest in program] for program in programs]
        computing = [each for each in actions if any(isinstance(action, sm.Softmax) for action in each)]
        done = [[action.i for action in each if isinstance(action, sm.Softmax)] for each in computing]
        if len(computing) != warpgroups or any(sorted(each) != list(range(tiles)) for each in done):
            return f"{len(computing)} of {warpgroups} warpgroups compute, with the tiles {done}, of {tiles}"
        return sm.run(actions, sm.attention_costs(D=D))
    except (sm.Race, sm.Deadlock) as error:
        return f"{type(error).__name__}: {error}"
    except (ValueError, TypeError, KeyError) as error:
        return str(error)


def held_up(programs: list) -> str:
    """What in the text of an order that comes to its end keeps the tensor cores waiting, or sharing; "" for nothing."""
    computing = [each for each in programs if any(action[0] == "Softmax" for action in each)]
    tiles = sum(action[0] == "Softmax" for action in computing[0]) if computing else 0
    if tiles < 2:
        return ""
    found, i = [], tiles // 2
    at = {tuple(action): n for n, action in enumerate(computing[0])}
    scores, there, softmax = at["Scores", i], at["Wait", "S", i], at["Softmax", i]
    output = at["Output", i - 1]
    passed = [n for n, action in enumerate(computing[0]) if action[0] == "Pass" and n > scores]
    if len(computing) > 1:
        if not passed:
            found += ["there are no turns: all multiply at once, and then all compute exponentials"]
        elif passed[0] < there:
            found += ["the turn is passed on when S is only started: the next one starts too, and they share"]
        elif passed[0] > softmax:
            found += ["the turn is kept during the softmax, in which nobody multiplies"]
    if output > softmax or at["Wait", "O", i - 1] < softmax:
        found += ["nothing of its own runs on the tensor cores while a warpgroup computes its softmax"]
    elif output < scores:
        found += ["P V of tile i − 1 is started before S of tile i, and the softmax waits for both"]
    loads = {tuple(action): n for each in programs for n, action in enumerate(each) if action[0] == "Load"}
    if loads["Load", "V", i] < loads["Load", "K", i]:
        found += ["V of a tile is loaded before its K, which is wanted first"]
    return "; ".join(found)


def plain_roles(function: Callable) -> Callable:
    """All actions of both roles, with barriers by their names: {"producer": [["Wait", "empty", 0, 1], …], …}."""

    def roles(slots: int, consumers: int, tiles: int) -> dict[str, list[list]]:
        return {role: _actions(function, role, slots, consumers, tiles) for role in ("producer", "consumer")}

    return roles


def _actions(function: Callable, role: str, slots: int, consumers: int, tiles: int) -> list[list]:
    ring = mbarrier.Ring(slots, consumers)
    names = {id(each): [kind, n] for kind in ("full", "empty") for n, each in enumerate(getattr(ring, kind))}
    found, walk = [], function(role, ring, tiles)
    if not hasattr(walk, "send"):
        raise TypeError(f"warp must be a generator, which yields actions; it returned {walk!r:.60}")
    for action in walk:
        name = type(action).__name__
        if not isinstance(action, mbarrier.Action) or len(found) > 20 * (tiles + 1):
            raise TypeError(f"{role}: {action!r:.60} is no action, or there is no end of them")
        values = [getattr(action, field.name) for field in fields(action)]
        if isinstance(values[0], mbarrier.Barrier):
            if id(values[0]) not in names:
                raise TypeError(f"{role}: {values[0].name} is not a barrier of the ring that it was given")
            values[:1] = names[id(values[0])]
        found.append([name, *values])
    return found


def play_roles(plain: dict, slots: int, consumers: int, tiles: int, seed: int) -> str:
    """What comes of it: "every tile was read", or what is wrong, in words."""

    def role(which: str):
        def walk(ring, tiles):
            for name, *values in plain[which]:
                if isinstance(values[0], str):
                    values[:2] = [getattr(ring, values[0])[values[1]]]
                yield getattr(mbarrier, name)(*values)

        return walk

    try:
        mbarrier.play(role("producer"), [role("consumer")] * consumers, slots, tiles, seed)
        return "every tile was read"
    except (mbarrier.Race, mbarrier.Deadlock) as error:
        return f"{type(error).__name__}: {error}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return str(error)
