"""The two-level machine: every byte is counted, what is on the chip was loaded, and has to fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.hardware.memory import DIRECT, HBM, KIB, NotLoaded, SRAMOverflow


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 9), tile=st.integers(1, 41))
def test_a_scaled_copy_moves_its_bytes_once_each_way_whatever_the_tile(rows, columns, tile):
    x = torch.randn(rows, columns)
    with HBM(x=x) as hbm:
        y = hbm.empty((rows, columns), name="y")
        for start in range(0, rows, tile):
            hbm.store(y[start : start + tile], hbm.load(x[start : start + tile]) * 2)
    assert torch.equal(y, x * 2)
    assert (hbm.loaded, hbm.stored, hbm.bytes) == ({"x": x.nbytes}, {"y": x.nbytes}, 2 * x.nbytes)
    starts = [t.start for t in hbm.transfers if t.kind == "load"]
    assert starts == [(start, 0) for start in range(0, rows, tile)]
    assert sum(t.bytes for t in hbm.transfers) == hbm.bytes


def test_an_operation_on_a_tensor_that_was_not_loaded_is_refused():
    x = torch.randn(4, 4)
    with HBM(x=x) as hbm:
        assert x[1:].T.shape == (4, 3)  # a view moves nothing
        with pytest.raises(NotLoaded, match=r"x, shape \(4, 3\), which is in HBM: hbm.load"):
            x[1:].T + 1
        with pytest.raises(NotLoaded, match="x"):
            x.mul_(2)
        with pytest.raises(NotLoaded, match="y"):
            hbm.empty((2,), name="y") + 1
        tile = hbm.load(x)
        tile += 1  # a copy: x is as it was
    assert torch.equal(tile, x + 1)


def test_a_tensor_takes_room_on_the_chip_for_as_long_as_it_is_alive():
    x = torch.randn(16, 64)  # 4 KiB
    with HBM(sram=10 * KIB, x=x) as hbm:
        a = hbm.load(x)
        b = a * 2
        assert hbm.sram_peak == 8 * KIB
        with pytest.raises(SRAMOverflow, match=r"12,288 bytes are alive .* has 10,240.*loaded of x \(16, 64\)"):
            a + b
        b.add_(a)  # in place: no more room
        del a
        b.view(64, 16).exp_()
        c = b * 2  # a's place
        assert hbm.sram_peak == 8 * KIB and c.shape == b.shape


def test_programs_side_by_side_have_a_chip_each():
    x = torch.randn(8, 16, 64)
    with HBM(sram=9 * KIB, programs=8, x=x) as hbm:
        hbm.load(x) + 1
    assert hbm.sram_peak == 8 * KIB
    assert hbm.loaded["x"] == x.nbytes


def test_a_transfer_records_the_tile_s_index_even_in_a_transposed_tensor():
    x = torch.randn(2, 6, 3, 5).transpose(1, 2)  # (2, 3, 6, 5)
    with HBM(x=x) as hbm:
        tile = hbm.load(x[1, 2:, 3:, 1:4])
    assert torch.equal(tile, x[1, 2:, 3:, 1:4])
    assert hbm.transfers[0].start == (1, 2, 3, 1) and hbm.transfers[0].bytes == 1 * 3 * 3 * 4


def test_stores_are_counted_in_the_dtype_that_is_stored():
    with HBM(x=torch.zeros(4)) as hbm:
        y = hbm.empty((4,), dtype=torch.float16, name="y")
        hbm.store(y, torch.ones(4))
    assert hbm.stored["y"] == 8 and torch.equal(y, torch.ones(4).half())


def test_elements_that_were_never_stored_are_nan_with_and_without_counting():
    with HBM(x=torch.zeros(1)) as hbm:
        y = hbm.empty((3,), name="y")
        hbm.store(y[1:], torch.ones(2))
    assert y.isnan().tolist() == [True, False, False]
    assert DIRECT.empty((2,)).isnan().all()


def test_gradients_are_recorded_by_direct_memory_and_not_by_hbm():
    x = torch.randn(3, requires_grad=True)
    with HBM(x=x) as hbm:
        assert not hbm.load(x).requires_grad
    y = DIRECT.empty((3,))
    DIRECT.store(y[:2], DIRECT.load(x[:2]) * 3)
    y[:2].sum().backward()
    assert x.grad.tolist() == [3, 3, 0]


def test_an_error_inside_leaves_torch_as_it_was():
    x = torch.randn(3)
    with pytest.raises(ZeroDivisionError), HBM(x=x):
        raise ZeroDivisionError
    assert (x + 1).shape == (3,) and torch.is_grad_enabled()


def test_errors_say_what_to_do():
    x = torch.randn(3)
    with HBM(x=x) as hbm:
        with pytest.raises(ValueError, match=r"load: a tile of shape \(2,\) is not in HBM, which holds x: give a view"):
            hbm.load(torch.zeros(2))
        with pytest.raises(ValueError, match="store: a tile .* is not in HBM"):
            hbm.store(torch.zeros(3), torch.zeros(3))
        with pytest.raises(ValueError, match=r"the shape of what it overwrites, \(2,\), got \(3,\)"):
            hbm.store(x[:2], torch.zeros(3))
    with pytest.raises(ValueError, match="programs must be at least 1"):
        HBM(programs=0)
    with pytest.raises(ValueError, match="sram must be a number of bytes"):
        HBM(sram=0)
    with pytest.raises(ValueError, match="q must be a torch.Tensor"):
        HBM(q=[1.0])
