"""06.ring: a producer and consumers over a ring of tiles, as `llmsys.hardware.mbarrier` plays them."""

from collections.abc import Callable

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware import mbarrier
from llmsys.lessons.lesson_06_flash_hopper.plain_programs import (
    copies_started,
    plain_roles,
    play_roles,
    tiles_read,
)

ALL_READ = "every tile was read"


@exercise_check(
    "06.ring",
    reference=mbarrier.warp,
    equivalent={"use + 1 → use - 1": "they differ by two, and what counts is the parity"},
    forbids=(mbarrier.producer, mbarrier.consumer, "llmsys.lessons.lesson_06_flash_hopper.mistakes:*"),
    adapt=plain_roles,
    hints=(
        "Write down, for two slots and five tiles, which slot tile i goes into, and how many tiles have been in that "
        "slot before. In which phase is its full barrier then, and in which its empty one?",
        "Tile i goes into slot i % slots, as its use number i // slots. That use's copy ends phase number use of full, "
        "so the consumer waits for parity use % 2. The slot is free for it when phase use − 1 of empty has ended: "
        "parity (use − 1) % 2, which is (use + 1) % 2, and right for the first use, too.",
        "for i in range(tiles):\n"
        "    slot, use = i % ring.slots, i // ring.slots\n"
        '    if role == "producer":\n'
        "        Wait(empty[slot], (use + 1) % 2);  Expect(full[slot], tile_bytes);  Copy(i, slot)\n"
        "    else:\n"
        "        Wait(full[slot], use % 2);  Read(slot);  Arrive(empty[slot])",
    ),
)
def ring(answer: Answer) -> None:
    def ask(slots: int, consumers: int, tiles: int, **tile_bytes: int) -> Run:
        return answer(slots=slots, consumers=consumers, tiles=tiles, **tile_bytes)

    def right(slots: int, consumers: int, tiles: int, seeds: int = 8, **tile_bytes: int) -> Run:
        def outcome(run: Run) -> str:
            said = (play_roles(run.value, slots, tiles, seed, **tile_bytes) for seed in range(seeds))
            return next((each for each in said if each != ALL_READ), ALL_READ)

        run = ask(slots, consumers, tiles, **tile_bytes)
        answer.that(
            run, lambda run: outcome(run) == ALL_READ,
            f"every one of {tiles} tiles read by {consumers} consumers, whoever is faster",
            got=outcome, by=lambda run: (outcome(run)[:24], "to announce" in outcome(run)),
        )  # fmt: skip
        return run

    def in_turn(slots: int, consumers: int, tiles: int, what: str, found: Callable[[list], list], expected: list):
        """`found(warps)`, of the actions of all warps, is `expected`; `what` says what that is."""
        answer.that(
            ask(slots, consumers, tiles), lambda run: found(run.value) == expected, what,
            got=lambda run: found(run.value),
        )  # fmt: skip

    with answer.property(
        "tile i goes through slot i % slots", why="Both go round the ring in the same order.",
        hint="Write down, for three slots and seven tiles, which slot tile i goes into, and out of which a consumer "
        "takes its i-th tile.",
    ):  # fmt: skip

        def places(warps: list) -> list:
            copies = [action[1:] for action in warps[0] if action[0] == "Copy"]
            return [copies, *([action[1] for action in each if action[0] == "Read"] for each in warps[1:])]

        for slots, tiles in ((3, 7), (5, 12)):
            expected = [[[i, i % slots] for i in range(tiles)], [i % slots for i in range(tiles)]]
            in_turn(slots, 1, tiles, "Copy(0, 0), Copy(1, 1), … and Read(0), …", places, expected)

    with answer.property(
        "one tile", why="Of a new barrier, parity 1 has ended, and parity 0 has not.",
        hint="Which parity has ended, for a barrier that is new? The lesson's cell above prints it. Who waits for a "
        "slot that is empty, and who for one that is full? And what ends full's phase?",
    ):  # fmt: skip
        right(1, 1, 1)

    with answer.property("as many tiles as slots", why="Each slot is used once: in phase 0."):
        right(3, 1, 3)

    with answer.property("one slot, used twice", why="Phase 0, then phase 1: the second time, the parity is another."):
        right(1, 1, 2)

    with answer.property("many rounds", why="Parities go on: 0, 1, 0, 1, with every use of a slot."):
        for slots, tiles in ((1, 5), (2, 9), (3, 9), (4, 23), (5, 11), (7, 22)):
            right(slots, 1, tiles)

    with answer.property(
        "two and more consumers", why="A slot is empty when all have given it back: each arrives once.",
        hint="How many arrivals at empty does a slot need, and of whom? Nobody may be assumed to be fast: follow two "
        "consumers, of which one is a tile behind.",
    ):  # fmt: skip
        right(2, 2, 9, seeds=20)
        right(3, 3, 8, seeds=10)
        before = right(4, 5, 9, seeds=4)

    with answer.property(
        "asked again, it is the same", why="The kernel does so for every tile of queries, over a ring of its own.",
        hint="Is there a counter or a table outside of the function, or among its default arguments, that it changes?",
    ):  # fmt: skip
        right(2, 1, 13)
        answer.equal(ask(4, 5, 9), before.value)

    with answer.property(
        "tiles of other sizes", why="How large a tile is, the ring says: a phase ends when all its bytes are there.",
        hint="How many bytes does the producer announce, and who says how many a tile has?",
    ):  # fmt: skip
        right(2, 2, 5, tile_bytes=12_288)

    with answer.property(
        "every tile's slot is given back, the last ones' too",
        why="The real ring goes on to the next queries' tiles: a slot that is not given back stops it there.",
        hint="What does a consumer do after it has read the last tile?",
    ):

        def given_back(warps: list) -> list:
            return [[action[2] for action in each if action[:2] == ["Arrive", "empty"]] for each in warps[1:]]

        for slots, consumers, tiles in ((3, 1, 7), (5, 2, 3)):
            expected = [[i % slots for i in range(tiles)]] * consumers
            what = f"an arrival of each consumer at empty for each of {tiles} tiles, in slots 0, 1, 2, …"
            in_turn(slots, consumers, tiles, what, given_back, expected)

    with answer.property(
        "nobody waits for more than there is to wait for",
        why="That is what slots are for: the producer is ahead by all of them, and what has come is read.",
        hint="Which event frees the slot for tile i, and which brings tile i? The producer waits for the first of them "
        "alone, a consumer for the second.",
    ):  # fmt: skip
        for slots, tiles in ((3, 8), (4, 9), (5, 2)):
            ahead = [min(n + slots, tiles) for n in range(tiles)]
            what = f"{ahead} copies started, where 0, 1, … tiles have been given back"
            in_turn(
                slots, 1, tiles, what, lambda w, s=slots, t=tiles: [copies_started(w, s, t, n) for n in range(t)], ahead
            )
            what = f"{list(range(tiles + 1))} tiles read, where as many have come"
            in_turn(
                slots, 1, tiles, what, lambda w, s=slots, t=tiles: [tiles_read(w[1], s, n) for n in range(t + 1)],
                list(range(tiles + 1)),
            )  # fmt: skip
