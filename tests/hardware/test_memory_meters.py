"""What is alive and what is read is metered, whatever it is kept in, and in whichever thread it happens."""

import _thread
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmsys.hardware.dispatch import Observer
from llmsys.hardware.memory import HBM, NotLoaded
from llmsys.hardware.memory_meters import _held, memory_of

ROWS, N, TILE = 2, 256, 16
BYTES = ROWS * TILE * 4  # of a tile


def tiles(x):
    return [x[:, start : start + TILE] for start in range(0, N, TILE)]


def metered(function):
    x = torch.randn(ROWS, N)
    with memory_of({"x": x}) as memory:
        result = function(x)
    return memory.reads["x"], memory.alive.beside(result)


def drops_them(x):
    for part in tiles(x):
        part.clone()


def keeps_a_list(x):
    kept = []
    for part in tiles(x):
        kept.append(part.clone())
    return kept[0]


def keeps_a_dict(x):
    kept = {}
    for i, part in enumerate(tiles(x)):
        kept[i] = part.clone()
    return kept[0]


def keeps_numpy_views(x):
    kept = []
    for part in tiles(x):
        kept.append(part.numpy())
    x[0, 0].item()


def keeps_numpy_of_clones(x):
    kept = []
    for part in tiles(x):
        kept.append(part.clone().numpy())


def keeps_numpy_copies(x):
    kept = []
    for part in tiles(x):
        kept.append(np.exp(part.numpy()))
    x[0, 0].item()
    return kept and None


def keeps_numbers(x):
    kept = []
    for part in tiles(x):
        kept.extend(part[0].tolist())
    x[0, 0].item()


@pytest.mark.parametrize("keeper", [keeps_a_list, keeps_a_dict, keeps_numpy_views, keeps_numpy_of_clones,
                                    keeps_numpy_copies, keeps_numbers])  # fmt: skip
def test_tiles_that_are_kept_are_alive_together(keeper):
    assert max(metered(keeper)[1]) >= N * ROWS * 4 * 3 // 4
    assert max(metered(drops_them)[1]) <= 2 * BYTES


def test_a_function_is_looked_into_though_one_that_has_ended_had_its_frames_number():
    def held(known_as):
        array = np.zeros(1000)
        return _held({id(here): here.f_code, id(sys._getframe()): known_as}) + 0 * array.size

    here = sys._getframe()
    assert held(known_as=held.__code__) == 0
    assert held(known_as=keeps_a_list.__code__) >= 8000


def test_what_is_made_for_the_result_is_not_kept():
    def exp(x):
        y = torch.empty_like(x)
        for part, into in zip(tiles(x), tiles(y), strict=True):
            into.copy_(part.exp())
        return y

    def exp_in_numpy(x):
        y = np.empty((ROWS, N), np.float32)
        for i, part in enumerate(tiles(x)):
            y[:, i * TILE : (i + 1) * TILE] = np.exp(part.clone().numpy())
        return torch.from_numpy(y)

    assert max(metered(exp)[1]) <= 2 * BYTES
    assert max(metered(exp_in_numpy)[1]) <= 2 * BYTES
    assert max(metered(lambda x: exp(x) + 0)[1]) >= N * ROWS * 4


def test_what_is_kept_is_told_by_passes():
    def keeps_in_the_second(x):
        drops_them(x)
        return keeps_a_list(x)

    first, second, _ = metered(keeps_in_the_second)[1]
    assert first <= 2 * BYTES and second >= 14 * BYTES


def test_memory_that_grows_is_counted_though_it_is_not_new():
    def grows(x):
        buffer = torch.empty(0)
        torch.cat([x, x], out=buffer)
        x.sum()

    assert max(metered(grows)[1]) >= 2 * N * ROWS * 4


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: np.asarray(x),
        lambda x: np.exp(x),
        lambda x: np.from_dlpack(x),
        lambda x: x.T.numpy(),
        lambda x: [value.item() for row in x for value in row],
        lambda x: [float(value) for row in x for value in row],
    ],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # torch's, where NumPy wraps a tensor
def test_leaving_torch_is_reading(read):
    reads, _ = metered(read)
    assert reads.elements == N * ROWS


def test_how_much_is_read_at_once_is_that_of_one_operation():
    assert metered(lambda x: [part.sum() for part in tiles(x)])[0].at_once == ROWS * TILE
    assert metered(lambda x: tiles(x)[0] * tiles(x)[0])[0].at_once == ROWS * TILE
    assert metered(lambda x: torch.cat(tiles(x)))[0].at_once == ROWS * N
    assert metered(lambda x: x.numpy())[0].at_once == ROWS * N


def test_what_is_computed_after_the_last_read_is_counted():
    def in_one_go(x):
        y = torch.empty_like(x)
        for part, into in zip(tiles(x), tiles(y), strict=True):
            into.copy_(part.exp())
            into /= 2
        return y

    def afterwards(function):
        x = torch.randn(ROWS, N)
        with memory_of({"x": x}) as memory:
            function(x)
        return memory.afterwards

    assert afterwards(in_one_go) == ROWS * TILE  # the last tile is divided
    assert afterwards(lambda x: torch.cat([part.exp() for part in tiles(x)]).clone().bfloat16()) == 0  # moved alone
    assert afterwards(lambda x: in_one_go(x).div_(2)) == ROWS * TILE + ROWS * N
    assert afterwards(lambda x: [part / 2 for part in [part.exp() for part in tiles(x)]]) == ROWS * N


def in_threads(x):
    threads = [threading.Thread(target=part.sum) for part in tiles(x)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_a_pool(x):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(torch.sum, tiles(x)))


def in_bare_threads(x):
    done = threading.Semaphore(0)

    def read(part):
        part.sum()
        done.release()

    for part in tiles(x):
        _thread.start_new_thread(read, (part,))
    for _ in tiles(x):
        done.acquire()


@pytest.mark.parametrize("run", [in_threads, in_a_pool, in_bare_threads])
def test_other_threads_are_metered(run):
    assert metered(run)[0].passes == 1


def test_a_pool_that_was_started_in_an_earlier_block_is_metered_in_a_later_one():
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            reads, _ = metered(lambda x: list(pool.map(torch.sum, tiles(x))))
            assert reads.passes == 1
        assert pool.submit(torch.ones(3).sum).result() == 3  # and outside of any


def test_threads_are_left_alone_after_the_block_also_where_it_raised():
    before = threading.Thread.start, _thread.start_new_thread
    for error in (None, ValueError):
        try:
            with Observer(), Observer():
                assert threading.Thread.start is not before[0]
                if error:
                    raise error
        except ValueError:
            pass
        assert (threading.Thread.start, _thread.start_new_thread) == before


def test_a_thread_may_not_compute_on_what_is_in_hbm():
    q = torch.ones(4)
    with HBM(q=q), ThreadPoolExecutor(1) as pool, pytest.raises(NotLoaded):
        pool.submit(q.sum).result()


@pytest.fixture(params=[False, True], ids=["", "profiled"])
def maybe_profiled(request):
    """With and without a profile function, for which Python 3.11 copies the variables of a function to and fro."""
    before = sys.getprofile()
    if request.param:
        sys.setprofile(lambda *event: None)
    yield
    sys.setprofile(before)


def test_looking_into_variables_changes_none_of_them(maybe_profiled):
    def counts(x):
        total, rows = 0.0, []
        for part in tiles(x):
            total = total + part.sum().item()
            rows.append(len(rows))

        def inner():
            nonlocal total
            for part in tiles(x):
                total = total + part.sum().item()
            return total

        return inner(), rows

    x = torch.ones(ROWS, N)
    with memory_of({"x": x}):
        assert counts(x) == (2.0 * ROWS * N, list(range(N // TILE)))


def test_looking_into_variables_keeps_none_of_them_alive(maybe_profiled):
    def two_at_a_time(x):
        for part in tiles(x):
            one = part.clone()
            other = part.clone()  # a look, while there is `one`
            del one, other
            torch.empty(2 * ROWS, TILE)

    assert max(metered(two_at_a_time)[1]) == 2 * BYTES
