"""Lesson 08, its pools: what a script says is worked out by hand, work is counted, the checks stand their self-test,
take right pools and reject wrong ones that they have not seen; and the small server answers as the model alone does."""

import re
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch

from llmsys.cache import BlockPool, OutOfBlocks, PagedCache
from llmsys.course.checking.answer import Answer
from llmsys.lessons.lesson_08_paged_kv_cache.checks.block_pool import _long_life as plain_life
from llmsys.lessons.lesson_08_paged_kv_cache.checks.prefix_sharing import _long_life as sharing_life
from llmsys.lessons.lesson_08_paged_kv_cache.counted_work import counted, growing
from llmsys.lessons.lesson_08_paged_kv_cache.kept import kept
from llmsys.lessons.lesson_08_paged_kv_cache.plain_pool import PlainPool
from llmsys.lessons.lesson_08_paged_kv_cache.scripts import played
from llmsys.lessons.lesson_08_paged_kv_cache.serve import serve
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_parts import SharingParts
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_pool import SharingPool
from llmsys.models import Llama, LlamaConfig, generate
from tests.lessons import answers_08
from tests.lessons.answers_08 import InADeque, InOneDict
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, verdict

# What is played


def test_a_script_says_what_a_pool_does_call_by_call():
    script = [["allocate", "a", 6], ["extend", "a", 9], ["allocate", "b", 9], ["free", "a"], ["free", "a"],
              ["extend", "b", 1]]  # fmt: skip
    assert played(PlainPool)(num_blocks=5, block_size=4, script=script) == [
        "Pool(5, 4); 4 free",
        "a = allocate(6): blocks [1, 2], 6 tokens; 2 free",
        "extend(a, 9): blocks [1, 2, 3], 9 tokens; 1 free",
        "b = allocate(9): OutOfBlocks; 1 free",
        "free(a): blocks [], 0 tokens; 4 free",
        "free(a): ValueError; 4 free",
        "extend(b, 1): there is no b",
    ]


def test_the_worked_example_of_vllm_is_played():
    common = list(range(53))
    script = [["begin", "a", [*common, 100, 101]], ["begin", "b", [*common, 200, 201]], ["free", "a"], ["free", "b"],
              ["admit", "c", list(range(1000, 1160))]]  # fmt: skip
    lines = played(SharingPool)(num_blocks=11, block_size=16, script=script)
    assert lines[1].endswith("hits 0 tokens, blocks [1, 2, 3, 4], 55 tokens; 6 free")
    assert lines[2].endswith("hits 48 tokens, blocks [1, 2, 3, 5], 55 tokens; 5 free")
    assert lines[5].endswith("blocks [5, 4, 6, 7, 8, 9, 10, 3, 2, 1], 160 tokens; 0 free")


def test_an_attribute_that_hides_a_method_is_named():
    class Hides(PlainPool):
        def __init__(self, num_blocks, block_size):
            super().__init__(num_blocks, block_size)
            self.free = []

    with pytest.raises(TypeError, match="self.free is a list, which hides the method free: give it another name"):
        played(Hides)(num_blocks=5, block_size=4, script=[])


class GivesAwayWhatIsInUse(SharingPool):
    def release(self, blocks):
        super().release(blocks)
        self.blank += [block for block in blocks if self.references[block]]


def test_keys_that_are_overwritten_are_reported():
    script = [["begin", "a", [1, 2, 3]], ["begin", "b", [1, 2, 4]], ["free", "a"], ["admit", "c", [7, 7, 7]]]
    lines = played(GivesAwayWhatIsInUse)(num_blocks=9, block_size=2, script=script)
    assert lines[-1].endswith("; the keys and values of b's token 0 are gone: another one's are there")
    assert "gone" not in "".join(played(SharingPool)(num_blocks=9, block_size=2, script=script))


def test_a_copy_that_is_not_made_is_reported():
    class CopiesNothing(SharingPool):
        def extend(self, table, length):
            super().extend(table, length)
            return []

    script = [["admit", "a", [1, 2, 3]], ["fork", "a", "b"], ["append", "b", [4]]]
    assert "b's token 2 are gone" in played(CopiesNothing)(num_blocks=9, block_size=2, script=script)[-1]


@pytest.mark.parametrize("seed", range(5))
def test_the_right_answers_live_as_the_librarys_pool_does(seed):
    answer = Answer(None, seed=seed)
    for life, pools in ((plain_life(answer, 11, 3), (PlainPool, BlockPool)),
                        (sharing_life(answer, 3), (SharingPool, BlockPool))):  # fmt: skip
        first, second = (played(pool)(num_blocks=16, block_size=3, script=life) for pool in pools)
        assert first == second and sum("OutOfBlocks" in line for line in first) > 0
        assert not any("gone" in line for line in first)


def test_the_librarys_pool_is_right_where_it_is_not_forbidden():
    for exercise in ("08.block_pool", "08.prefix_sharing"):
        assert verdict(exercise, BlockPool, watched=False)
        assert verdict(exercise, BlockPool).failure.kind == "forbidden"


# Work is counted


class Keeps:
    """Containers of 1000 ids; `self.few` has four."""

    def __init__(self):
        self.ids, self.few, self.queue = list(range(1000)), [1, 2, 3, 4], deque(range(1000))
        self.set, self.dict = set(range(1000)), dict.fromkeys(range(1000))
        self.ordered = OrderedDict.fromkeys(range(1000))
        self.array, self.nested, self.same = np.arange(1000), {"a": [list(range(1000))]}, self.ids


WALKS = {
    "999 in list": lambda k: 999 in k.ids,
    "list.remove": lambda k: k.ids.remove(0),
    "list.pop(0)": lambda k: k.ids.pop(0),
    "list.insert": lambda k: k.ids.insert(0, 7),
    "a slice in front": lambda k: k.ids.__setitem__(slice(0, 0), [7]),
    "min": lambda k: min(k.ids),
    "sorted": lambda k: sorted(k.set),
    "a copy": lambda k: list(k.ids),
    "a slice": lambda k: k.ids[1:],
    "plus": lambda k: k.ids + [1],
    "plus, from the right": lambda k: [1] + k.ids,  # noqa: RUF005
    "unpacked": lambda k: [1, *k.ids],
    "a set of it": lambda k: set(k.ids),
    "what is left of a range": lambda k: set(range(1001)) - k.set,
    "the last key": lambda k: list(k.dict)[-1],
    "the largest value": lambda k: max(k.ordered.values(), key=str),
    "a search among values": lambda k: 3 in k.dict.values(),
    "deque.remove": lambda k: k.queue.remove(5),
    "the middle of a deque": lambda k: k.queue[500] == k.queue[501] == k.queue[499],
    "argmax": lambda k: np.argmax(k.array),
    "a comparison of an array": lambda k: k.array > 5,
    "a loop": lambda k: [None for _ in range(1000)],
    "a list in a list in a dict": lambda k: 999 in k.nested["a"][0],
    "under another name": lambda k: 999 in k.same,
}
CONSTANT = {
    "pop and append": lambda k: k.ids.append(k.ids.pop()),
    "extend by a few": lambda k: k.ids.extend(k.few),
    "plus equals a few": lambda k: k.ids.__iadd__(k.few),
    "both ends of a deque": lambda k: k.queue.appendleft(k.queue.popleft() + k.queue.pop()),
    "a deque's ends": lambda k: k.queue[0] + k.queue[-1],
    "is it empty": lambda k: (k.ids == [], len(k.set), bool(k.dict)),
    "in a set and a dict": lambda k: 5 in k.set and 5 in k.dict and 5 in k.ordered.keys(),
    "the first key": lambda k: next(iter(k.dict)),
    "the first and the last of an OrderedDict": lambda k: (k.ordered.popitem(last=False), next(reversed(k.ordered))),
    "moved to the end": lambda k: k.ordered.move_to_end(500),
    "a small set of a large one": lambda k: {1, 2} <= k.set and {1, 2} & k.set and {1, 5} - k.set,
    "an element of an array": lambda k: k.array[5] + k.array[6],
    "a sum of few": lambda k: sum(k.few),
}


@pytest.mark.parametrize("name", [*WALKS, *CONSTANT])
def test_a_walk_through_all_is_counted_and_what_costs_nothing_is_not(name):
    keeps, plain = Keeps(), Keeps()
    with counted(keeps) as steps:
        result = (WALKS | CONSTANT)[name](keeps)
    assert steps() >= 499 if name in WALKS else steps() < 20
    other = (WALKS | CONSTANT)[name](plain)
    assert np.array_equal(result, other) if isinstance(other, np.ndarray) else result == other


def test_containers_that_count_are_counted_once_and_stay_what_they_were():
    keeps = Keeps()
    for _ in range(3):
        with counted(keeps) as steps:
            999 in keeps.ids  # noqa: B015
        assert 1000 <= steps() < 1010
    assert keeps.ids is keeps.same and keeps.ids == list(range(1000)) and isinstance(keeps.ids, list)


def test_what_grows_is_named_and_printed(capsys):
    def life(pool):
        yield "first", lambda: pool.ids.pop(0)
        yield "last", lambda: pool.ids.pop()

    class OfSize:
        def __init__(self, size):
            self.ids = list(range(size))

    assert growing(OfSize, life, (10, 500)) == ["first"]
    assert re.fullmatch(r"first: \d+ steps in a pool of 10 blocks, \d+ in one of 500\n", capsys.readouterr().out)


def test_what_a_pool_keeps_is_counted_through_objects_and_circles():
    class Part:
        __slots__ = ("ids", "whole")

    keeps = Keeps()
    before = kept(keeps)
    keeps.part = part = Part()
    part.ids, part.whole = [1, 2, 3], {"back": keeps}
    assert kept(keeps) == before + 4
    keeps.ids.append(7)
    assert kept(keeps) == before + 5  # self.same is the same list


# Answers that the checks have not seen


@pytest.mark.parametrize("answer", answers_08.RIGHT_POOLS)
def test_a_right_pool_is_taken(answer):
    assert_taken("08.block_pool", answer)


@pytest.mark.parametrize("answer", answers_08.WRONG_POOLS)
def test_a_wrong_pool_is_rejected(answer):
    assert_rejected("08.block_pool", answer)


@pytest.mark.parametrize("answer", answers_08.RIGHT_SHARING)
def test_right_sharing_is_taken(answer):
    assert_taken("08.prefix_sharing", answer)


@pytest.mark.parametrize("answer", answers_08.WRONG_SHARING)
def test_wrong_sharing_is_rejected(answer):
    assert_rejected("08.prefix_sharing", answer)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # what mistaken kernels compute
@pytest.mark.parametrize("exercise", exercises_of("08"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


# The parts, and the server


def test_the_parts_refuse_what_cannot_be():
    for numbers in ((1, 4), (4, 0)):
        with pytest.raises(ValueError, match="num_blocks must be at least 2 and block_size at least 1, got"):
            SharingParts(*numbers)
    pool = SharingPool(4, 2)
    table = pool.allocate(3)
    pool.free(table)
    with pytest.raises(ValueError, match="freed already, or another pool made it"):
        pool.free(table)
    with pytest.raises(OutOfBlocks, match="4 blocks are needed, and 3 are free"):
        pool.allocate(7)


def test_what_was_evicted_leaves_nothing_behind():
    pool = SharingPool(5, 2)
    for n in range(50):
        text = list(range(8 * n, 8 * n + 8))
        table = pool.allocate(8, pool.match(text))
        pool.register(table, text, 8)
        pool.free(table)
    assert len(pool.by_hash) == len(pool.held) == 4


@pytest.fixture(scope="module")
def tiny() -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(
        name="tiny", vocab_size=61, hidden_size=32, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=48,
        context_length=64, tied_embeddings=False,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


START = [5, 11, 2, 60, 3, 3, 17, 8, 9]
PROMPTS = [[*START, n, 20 - n] for n in range(5)]


@pytest.mark.parametrize("num_blocks", [8, 16, 60])
@pytest.mark.parametrize("kind", [PlainPool, SharingPool, BlockPool, InADeque, InOneDict])
def test_served_together_each_prompt_gets_what_it_gets_alone(tiny, kind, num_blocks):
    """With few blocks, sequences run out of room in the middle, wait and begin again."""
    pool = kind(num_blocks, 4)
    cache = PagedCache(num_blocks=num_blocks, block_size=4)
    served = serve(tiny, PROMPTS, pool, cache, new_tokens=9)
    assert served.tokens == [generate(tiny, each, cache=False, max_new_tokens=9).tokens for each in PROMPTS]
    assert pool.free_blocks == num_blocks - 1 and served.most_blocks <= num_blocks - 1
    assert served.most_at_once == 5 or num_blocks < 60
    if kind in (PlainPool, InADeque):  # what is begun again is computed again
        assert (served.computed > 5 * (11 + 8)) == (num_blocks < 60)


def test_what_is_shared_is_computed_once(tiny):
    def computed(kind):
        cache = PagedCache(num_blocks=60, block_size=4)
        return serve(tiny, PROMPTS, kind(60, 4), cache, new_tokens=2, at_most=1)

    alone, shared = computed(PlainPool), computed(SharingPool)
    assert (alone.computed, alone.hits) == (5 * 12, [0] * 5)
    assert (shared.computed, shared.hits) == (5 * 12 - 4 * 8, [0, 8, 8, 8, 8])


def test_a_prompt_that_never_has_room_is_refused(tiny):
    with pytest.raises(OutOfBlocks):
        serve(tiny, [list(range(30))], PlainPool(5, 4), PagedCache(num_blocks=5, block_size=4), new_tokens=2)
    with pytest.raises(OutOfBlocks):
        serve(tiny, [list(range(14))], PlainPool(5, 4), PagedCache(num_blocks=5, block_size=4), new_tokens=5)


def test_a_readers_pool_serves_the_paged_cache(tiny):
    for kind in (PlainPool, SharingPool, InADeque):
        cache = PagedCache(pool=kind(12, 4))
        said = generate(tiny, START, attention=cache, max_new_tokens=9)
        assert said.tokens == generate(tiny, START, cache=False, max_new_tokens=9).tokens
        cache.end()
        assert cache.pool.free_blocks == 11


def test_no_text_of_the_checks_is_longer_than_a_card():
    """The calls that led to a wrong one are shown in lines that fit."""
    script = [["begin", "a", list(range(100))], ["append", "a", list(range(50))]]
    lines = played(SharingPool)(num_blocks=99, block_size=16, script=script)
    assert all(len(re.sub(r"blocks \[.*?\]", "blocks", line)) < 100 for line in lines)
