"""Who waits for whom, worked out from made-up records; and records as they are written and read."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.parallel.ranks import waits
from llmsys.parallel.ranks.failure import stack_in_words, with_source
from llmsys.parallel.ranks.record import GROUPS, SIZE, SLOTS, Call, Record, Written, glance, read
from llmsys.parallel.ranks.waits import State, circle, describe, odd_one_out, waits_for


def receives(peer: int | None, members=(0, 1, 2, 3)) -> State:
    call = Call("recv", "g", list(members), peer, 1, "float32 (1,)", "f.py:1 in f", began=0.0)
    return State(Written([call], None, {}))


def in_collective(number: int, name="all_reduce", members=(0, 1, 2, 3), group="g") -> State:
    call = Call(name, group, list(members), None, number, "float32 (1,)", "f.py:1 in f", began=0.0)
    return State(Written([call], None, {group: number}))


def computes(**begun: int) -> State:
    return State(Written([], None, begun))


def test_a_receive_waits_for_its_sender_and_one_from_anyone_for_all():
    states = {0: receives(2), 1: receives(None), 2: computes(), 3: computes()}
    assert [waits_for(rank, states) for rank in states] == [[2], [0, 2, 3], [], []]


def test_a_collective_waits_for_members_that_have_not_begun_their_so_manieth():
    states = {0: in_collective(3), 1: in_collective(3), 2: computes(g=2), 3: computes(g=3)}
    assert waits_for(0, states) == waits_for(1, states) == [2]
    assert "is in a call to which all have come" in describe(0, {0: in_collective(1, members=(0,))}, 1.0)


def test_a_collective_of_some_does_not_wait_for_others():
    states = {0: in_collective(1, members=(0, 2), group="pair"), 1: computes(), 2: computes(g=5), 3: computes()}
    assert waits_for(0, states) == [2]


def test_ranks_in_different_calls_of_the_same_turn_are_told_apart():
    states = {0: in_collective(2), 1: in_collective(2, "broadcast"), 2: in_collective(3, "broadcast")}
    assert odd_one_out(0, states) == "rank 1 calls broadcast of float32 (1,) instead, at f.py:1 in f"
    assert odd_one_out(2, states) == ""


def test_a_rank_that_has_returned_waits_for_nobody_and_is_named_as_such():
    over = State(receives(0).written, "has returned")
    states = {0: receives(1), 1: over}
    assert waits_for(1, states) == [] and circle(states) == []
    assert describe(0, states, 2.5) == (
        "rank 0 waits for rank 1 (which has returned), since 2.5 s: recv from rank 1 of float32 (1,), at f.py:1 in f"
    )
    assert describe(1, states, 2.5) == "rank 1 has returned"


@given(st.lists(st.none() | st.integers(0, 6), min_size=7, max_size=7))
def test_a_circle_is_found_exactly_when_following_the_waits_never_ends(peers):
    states = {rank: computes() if peer is None else receives(peer, range(7)) for rank, peer in enumerate(peers)}

    def ends(rank):
        for _ in range(8):
            if peers[rank] is None:
                return True
            rank = peers[rank]
        return False

    found = circle(states)
    assert bool(found) == any(not ends(rank) for rank in range(7))
    for rank, following in zip(found, [*found[1:], *found[:1]], strict=True):
        assert peers[rank] == following


def test_a_circle_through_a_collective_is_found():
    states = {0: in_collective(1), 1: receives(0), 2: in_collective(1), 3: in_collective(1)}
    assert circle(states) == [0, 1]


# Records


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "calls"), tmp_path / "calls"


def test_calls_are_read_as_they_were_written(record):
    record, path = record
    first = record.begin("all_reduce", "g", [0, 1], tensor="float32 (2,)")
    assert read(path).waiting == read(path).unfinished[0]
    assert read(path).waiting.place.endswith("in test_calls_are_read_as_they_were_written")
    record.end(first)
    assert read(path).waiting is None and read(path).last.name == "all_reduce" and read(path).begun == {"g": 1}
    second = record.begin("recv", "g", [0, 1], peer=1)
    assert str(read(path).waiting).startswith("recv from rank 1, at ")
    record.end(second)
    record.end(second)
    record.clear()
    assert read(path).last is None and read(path).begun == {}


def test_a_work_is_waited_for_only_when_somebody_waits_and_forgotten_with_it(record):
    class Work:
        pass

    record, path = record
    work, other = Work(), Work()
    for each in (other, work):
        record.issued(record.begin("send", "g", [0, 1], peer=1), each)
    assert read(path).waiting is None and len(read(path).unfinished) == 2
    key = record.wait(work)
    assert read(path).waiting.number == 2, "the second message"
    record.end(key)
    assert record.wait(work) is None, "a second wait has nothing to wait for"
    del other
    assert read(path).unfinished == []


def test_a_thousand_unfinished_calls_fit_with_the_one_that_is_waited_for(record):
    class Work:
        pass

    record, path = record
    works = [Work() for _ in range(1000)]
    for each in works:
        record.issued(record.begin("send", "g", list(range(64)), peer=1, place="x" * 600), each)
    for number in (1000, 1, 500):
        key = record.wait(works[number - 1])
        assert read(path).waiting.number == number and len(read(path).unfinished) == SLOTS - (number != 1000)
        record.end(key)
        assert read(path).last.number == number and read(path).waiting is None
    works.clear()
    assert record.unfinished() == 0 and read(path).unfinished == []
    assert len(read(path).last.place) > 400


def test_more_groups_than_fit_are_left_out_and_others_stay_right(record):
    record, path = record
    for n in range(GROUPS + 5):
        record.end(record.begin("barrier", f"group {n}", [0, n + 1]))
        record.end(record.begin("barrier", "group 3", [0, 4]))
    assert read(path).begun["group 3"] == GROUPS + 6 and f"group {GROUPS}" not in read(path).begun
    record.begin("barrier", "one more", [0, 1])
    assert read(path).waiting.members == [], "not known, and nothing wrong is said"


def test_a_call_of_which_the_writing_was_not_finished_is_not_read(record):
    record, path = record

    class Killed(BaseException):
        pass

    class Memory:
        def __init__(self, memory, steps):
            self.memory, self.steps = memory, steps

        def __getitem__(self, at):
            return self.memory[at]

        def __setitem__(self, at, value):
            self.steps -= 1
            if self.steps < 0:
                raise Killed
            self.memory[at] = value

    memory = record._memory
    record.end(record.begin("barrier", "g", [0]))
    record.end(record.begin("barrier", "g", [0]))
    for steps in range(3):
        record._memory = Memory(memory, steps)
        with pytest.raises((Killed, TypeError)):  # TypeError: numbers are packed into true memory alone
            record.begin("all_reduce", "h", [0])
        record._memory = memory
        assert read(path).waiting is None and read(path).last.name == "barrier"


def test_a_record_has_its_place_on_the_disk_from_the_beginning(tmp_path):
    Record(tmp_path / "calls")
    assert os.stat(tmp_path / "calls").st_blocks * 512 >= SIZE


def test_a_glance_says_whether_anything_moves_and_whether_the_rank_waits(record):
    record, path = record
    seen = [glance(path)]
    key = record.begin("barrier", "g", [0])
    seen.append(glance(path))
    record.end(key)
    seen.append(glance(path))
    assert [waits for _, waits in seen] == [False, True, False]
    assert len({writes for writes, _ in seen}) == 3


# Stacks


def test_a_stack_without_this_packages_frames_and_with_the_lines_of_code():
    dump = (
        "Thread 0x01 (most recent call first):\n"
        '  File "/x/multiprocessing/connection.py", line 395 in _recv\n'
        '  File "/x/llmsys/parallel/ranks/worker.py", line 70 in _listen\n\n'
        "Current thread 0x02 (most recent call first):\n"
        '  File "/x/torch/distributed/distributed_c10d.py", line 2799 in recv\n'
        f'  File "{__file__}", line 1 in f\n'
        '  File "/x/llmsys/parallel/ranks/worker.py", line 84 in _run\n'
        '  File "<string>", line 1 in <module>\n'
    )
    own = '"""Who waits for whom, worked out from made-up records; and records as they are written and read."""'
    assert with_source(stack_in_words(dump)).splitlines() == [
        "stack, innermost call first:", f'  File "{__file__}", line 1 in f', f"    {own}",
    ]  # fmt: skip
    assert waits.describe(0, {0: computes()}, 0.0) == "rank 0 is in no communication call; it has made none"
