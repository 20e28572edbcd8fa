"""The benchmark of transfers that wait: every rank says what it saw."""

import pytest

from llmsys.bench.record import load
from llmsys.bench.transfers import measure, table
from llmsys.parallel.ranks import close


@pytest.fixture(scope="module", autouse=True)
def no_rank_is_left():
    yield
    close()


def test_each_rank_has_its_ends_and_its_work_alone_and_beside_what_waits(tmp_path):
    record = measure(quick=True)
    found = [(row["rank"], row["name"], row.get("bytes", row.get("beside"))) for row in record.rows]
    sends = ["a send of 1 KiB", "a send of 1 MiB"]
    assert found == [
        *((0, "send", count) for count in (2**10, 2**20)),
        *((0, work, beside) for work in ("matrix product", "SiLU") for beside in ("nothing", *sends)),
        *((1, "receive", count) for count in (2**10, 2**20)),
        *((1, work, beside) for work in ("matrix product", "SiLU") for beside in ("nothing", "a receive")),
    ]
    assert all(row["ms"] > 0 for row in record.rows)
    assert load(record.save(tmp_path)) == record and len(table(record).rows) == len(record.rows)
