"""Orders and roles as plain data, and what comes of them.

What goes from the learner's process to the grader's is plain data. So the actions of an order (06.order) go as their
names and numbers, those of the roles (06.ring) with their barriers by name. The grader's process runs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

from llmsys.hardware import mbarrier, sm

_ALL_MOVES = (mbarrier.Wait, mbarrier.Expect, mbarrier.Copy, mbarrier.Read, mbarrier.Arrive)
MOVES = {each.__name__: each for each in _ALL_MOVES}
"""What a warp may do, by its name: nothing else is called that comes in a reply."""

SCHEDULES = {each.__name__: each for each in (sm.Load, sm.Scores, sm.Softmax, sm.Output, sm.Wait, sm.Turn, sm.Pass)}


def plain_order(function: Callable) -> Callable:
    """The order's actions as lists of names and numbers: [["Load", "K", 0], …] for each program."""

    def order(tiles: int, warpgroups: int) -> list[list[list]]:
        programs = function(tiles, warpgroups)
        if not isinstance(programs, list | tuple) or not all(isinstance(each, list | tuple) for each in programs):
            raise TypeError(f"order must return a list of lists of actions, got {programs!r:.80}")
        return [[_plain_action(each) for each in program] for program in programs]

    return order


def _plain_action(action) -> list:
    name = type(action).__name__
    if SCHEDULES.get(name) is not type(action):
        raise TypeError(f"{action!r:.60} is no action: Load, Scores, Softmax, Output, Wait, Turn and Pass are")
    return [name, *(getattr(action, field.name) for field in fields(action))]


def run_order(programs: list, warpgroups: int, tiles: int, D: int, begin: Sequence[float] = ()) -> sm.Timeline | str:
    """What an SM makes of it, where programs begin in the cycles `begin`: a timeline, or what is wrong, in words."""
    try:
        if len(programs) > MOST_WARPS or any(len(each) > most_moves(tiles) for each in programs):
            return f"there are more than {most_moves(tiles)} actions for {tiles} tiles"
        actions = [[SCHEDULES[name](*rest) for name, *rest in program] for program in programs]
        computing = [each for each in actions if any(isinstance(action, sm.Softmax) for action in each)]
        done = [[action.i for action in each if isinstance(action, sm.Softmax)] for each in computing]
        if len(computing) != warpgroups or any(sorted(each) != list(range(tiles)) for each in done):
            return f"{len(computing)} of {warpgroups} warpgroups compute, with the tiles {done}, of {tiles}"
        return sm.run(actions, sm.attention_costs(D=D), begin=begin)
    except (sm.Race, sm.Deadlock) as error:
        return f"{type(error).__name__}: {error}"
    except (ValueError, TypeError, KeyError) as error:
        return str(error)


def only_loads(programs: list, warpgroups: int, tiles: int) -> str:
    """What is wrong with who starts the copies, "" for nothing: it is to be the program after those of all warpgroups,
    with the loads of all tiles, once each, and with no work of its own."""
    names = [{action[0] for action in each} for each in programs]
    computing = [n for n, each in enumerate(names) if each & {"Scores", "Softmax", "Output"}]
    loading = [n for n, each in enumerate(names) if "Load" in each]
    loads = sorted((action[1:] for each in programs for action in each if action[0] == "Load"), key=str)
    if both := sorted({*computing} & {*loading}):
        return f"program number {both[0]} computes, and starts copies, too"
    if len(loading) != 1:
        return f"copies are started by {len(loading)} programs"
    if loading[0] != len(programs) - 1 or len(programs) != warpgroups + 1:
        return f"copies are started by program number {loading[0]} of {len(programs)}, counted from 0"
    if loads != sorted(([tile, i] for i in range(tiles) for tile in "KV"), key=str):
        return f"the tiles that are loaded are {', '.join(f'{tile}{i}' for tile, i in loads)}"
    return ""


def held_up(programs: list) -> str:
    """What in the text of an order that comes to its end keeps the tensor cores waiting, or sharing; "" for nothing."""
    computing = [each for each in programs if any(action[0] == "Softmax" for action in each)]
    tiles = sum(action[0] == "Softmax" for action in computing[0]) if computing else 0
    if tiles < 2:
        return ""
    found, i = [], tiles // 2
    at = {tuple(action): n for n, action in reversed(list(enumerate(computing[0])))}  # where each stands first
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
    turns = [action[0] for action in computing[0][:output] if action[0] in ("Turn", "Pass")]
    if len(computing) > 1 and turns and turns[-1] == "Pass":
        found += ["P V is started out of turn, and shares the tensor cores with who has it"]
    if output > softmax or at["Wait", "O", i - 1] < softmax:
        found += ["nothing of its own runs on the tensor cores while a warpgroup computes its softmax"]
    elif output < scores:
        found += ["P V of tile i − 1 is started before S of tile i, and the softmax waits for both"]
    loads = {tuple(action): n for each in programs for n, action in enumerate(each) if action[0] == "Load"}
    if loads["Load", "V", i] < loads["Load", "K", i]:
        found += ["V of a tile is loaded before its K, which is wanted first"]
    return "; ".join(found)


def plain_roles(function: Callable) -> Callable:
    """All actions of the producer and of each consumer, with barriers by their names, as a list for each warp, the
    producer's first: [[["Wait", "empty", 0, 1], …], [["Wait", "full", 0, 0], …], …]. The warps' generators are alive at
    the same time and over the same ring, and go on in turn."""

    def roles(slots: int, consumers: int, tiles: int, tile_bytes: int = TILE_BYTES) -> list[list[list]]:
        ring = mbarrier.Ring(slots, consumers, tile_bytes)
        names = ["producer", *["consumer"] * consumers]
        walks = [function(name, ring, tiles) for name in names]
        for walk in walks:
            if not hasattr(walk, "send"):
                raise TypeError(f"warp must be a generator, which yields actions; it returned {walk!r:.60}")
        found, going, most = [[] for _ in walks], list(range(len(walks))), most_moves(tiles)
        while going:
            for n in tuple(going):
                try:
                    found[n].append(_plain_move(next(walks[n]), names[n], ring))
                except StopIteration:
                    going.remove(n)
                if len(found[n]) > most:
                    raise TypeError(f"{names[n]}: more than {most} actions for {tiles} tiles, and no end of them")
        return found

    return roles


MOST_WARPS = 64
"""More do not fit an SM."""


def most_moves(tiles: int) -> int:
    """How many actions a warp may take for so many tiles, before it is said to have no end."""
    return 20 * (tiles + 1)


def form_of_roles(plain: object, tiles: int) -> str:
    """What is wrong with the form of roles that came in a reply, "" for nothing: a list for each warp, not too long, of
    names in MOVES and of small numbers. Whatever is built of them then is bounded."""
    if not isinstance(plain, list) or not 1 < len(plain) <= MOST_WARPS:
        return "expected a list of actions for each warp"
    for each in plain:
        if not isinstance(each, list) or len(each) > most_moves(tiles):
            return f"a warp has more than {most_moves(tiles)} actions for {tiles} tiles, or is no list of them"
        for action in each:
            name, *values = action if isinstance(action, list) and action else [None]
            if not isinstance(name, str) or name not in MOVES or len(values) > 3:
                return f"{action!r:.60} is no action: {', '.join(MOVES)} are"
            if any(isinstance(value, str) and value not in ("full", "empty") for value in values):
                return f"{action!r:.60} names no barrier: full and empty are"
            if not all(isinstance(value, str) or (type(value) is int and abs(value) < 1 << 40) for value in values):
                return f"{action!r:.60} has numbers that make no sense"
    return ""


TILE_BYTES = 16_384
"""Bytes of a tile where a check asks for no other number."""


def _plain_move(action, role: str, ring: mbarrier.Ring) -> list:
    """An action of a role as its name and numbers."""
    name = type(action).__name__
    if not isinstance(action, mbarrier.Action):
        raise TypeError(f"{role}: {action!r:.60} is no action: Wait, Expect, Copy, Read and Arrive are")
    values = [getattr(action, field.name) for field in fields(action)]
    if name in ("Wait", "Arrive", "Expect"):
        barriers = [(kind, n, each) for kind in ("full", "empty") for n, each in enumerate(getattr(ring, kind))]
        places = [[kind, n] for kind, n, each in barriers if each is values[0]]
        if not places:
            of = getattr(values[0], "name", repr(values[0])[:60])
            raise TypeError(f"{role}: {of} is not a barrier of the ring that it was given")
        values[:1] = places[0]
    return [name, *values]


def play_roles(plain: list, slots: int, tiles: int, seed: int, tile_bytes: int = TILE_BYTES) -> str:
    """What comes of it: "every tile was read", or what is wrong, in words. `tile_bytes` are those of the ring for which
    the roles were written down."""

    def role(actions: list):
        def walk(ring, tiles):
            for action in actions:
                yield _move(action, ring, ring.tile_bytes - tile_bytes)

        return walk

    try:
        if wrong := form_of_roles(plain, tiles):
            return wrong
        mbarrier.play(role(plain[0]), [role(each) for each in plain[1:]], slots, tiles, seed)
        return "every tile was read"
    except (mbarrier.Race, mbarrier.Deadlock) as error:
        return f"{type(error).__name__}: {error}"
    except WRONG as error:
        return str(error)


WRONG = ValueError, TypeError, KeyError, IndexError, AttributeError
"""What is raised where an action's numbers make no sense."""


def _move(action: list, ring: mbarrier.Ring, more_bytes: int = 0) -> mbarrier.Action:
    """The action of that name and numbers, over this ring, whose tiles have so many bytes more."""
    name, *values = action
    if name in ("Wait", "Arrive", "Expect"):
        values[:2] = [{"full": ring.full, "empty": ring.empty}[values[0]][values[1]]]
    if name == "Expect":
        values[1] += more_bytes
    return MOVES[name](*values)


def copies_started(plain: list, slots: int, tiles: int, given_back: int) -> int | str:
    """How many copies the producer starts where the first `given_back` tiles are read and given back as soon as they
    can be, and no other copy ends."""
    ring, started = mbarrier.Ring(slots, len(plain) - 1, TILE_BYTES), 0
    try:
        for action in (_move(each, ring) for each in plain[0]):
            match action:
                case mbarrier.Wait(barrier, parity) if not barrier.wait(parity):
                    break
                case mbarrier.Expect(barrier, nbytes):
                    barrier.expect_bytes(nbytes)
                case mbarrier.Arrive(barrier):
                    barrier.arrive()
                case mbarrier.Copy(tile, slot):
                    started += 1
                    if tile < given_back:
                        ring.full[slot].copied(TILE_BYTES)
                        ring.empty[slot].arrive(ring.consumers)
        return started
    except (mbarrier.Race, *WRONG) as error:
        return str(error)


def tiles_read(consumer: list, slots: int, copied: int) -> int | str:
    """How many tiles a consumer reads where the first `copied` tiles come, each as soon as its slot is free."""
    ring, read, there, free = mbarrier.Ring(slots, 1, TILE_BYTES), 0, 0, slots
    try:
        for action in (_move(each, ring) for each in consumer):
            while there < min(copied, free):
                full = ring.full[there % slots]
                full.expect_bytes(0)
                there += 1
            match action:
                case mbarrier.Wait(barrier, parity) if not barrier.wait(parity):
                    break
                case mbarrier.Read():
                    read += 1
                case mbarrier.Arrive():
                    free += 1
        return read
    except (mbarrier.Race, *WRONG) as error:
        return str(error)
