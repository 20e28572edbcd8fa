"""Lesson 06's opening picture."""

from llmsys.hardware.sm import ORDERS, attention_costs, run
from llmsys.viz.flash_hopper import overview


def test_the_overview_shows_both_orders_and_the_librarys_registers(assert_legible, texts):
    picture = overview()
    assert_legible(picture.svg)
    assert {"producer", "copy engine", "consumer 0", "consumer 1", "tensor cores", "softmax"} <= set(texts(picture))
    busy = [f"tensor cores busy {100 * run(ORDERS[name](16, 2), attention_costs()).utilisation('tensor'):.0f} %"
            for name in ("fa2", "overlapped_held")]  # fmt: skip
    assert [text for text in texts(picture) if "busy" in text] == busy
    assert "24 registers a thread" in picture.alt and "240 registers a thread" in picture.alt
