"""A record of the serving benchmark as tables: a table a sweep."""

from llmsys.bench.record import Record
from llmsys.bench.serving.steps import PARTS_OF_A_STEP


def table(record: Record):
    """The record as rich tables, one below the other."""
    from rich.console import Group

    tables = (_speeds(record), _steps(record), _peer(record), _policies(record))
    return Group(*(shown for shown in tables if shown.rows))


def _speeds(record: Record):
    from rich.table import Table

    gbps = next(row["gbps"] for row in record.rows if row["sweep"] == "copy")
    title = f"serving, tokens of answers a second (of reading alone, at a copy's {gbps:,.0f} GB/s), on {record.device}"
    heads = ("model", "execution", "requests", "output tokens", "steps", "tokens/s", "one request: tokens/s")
    shown = Table(*heads, title=title)
    alone = {(row["model"], row["name"]): row for row in record.rows if row["sweep"] == "one"}
    for row in of(record, "throughput"):
        one = alone.get((row["model"], row["name"]))
        shown.add_row(
            row["model"], row["name"], str(row["requests"]), f"{row['output_tokens']:,}", f"{row['steps']:,}",
            _speed(row), _speed(one) if one else "–",
        )  # fmt: skip
    return shown


def _steps(record: Record):
    from rich.table import Table

    heads = ("model", "batch", "execution", "ms", "attention", "other kernels", "idle", "of roofline")
    shown = Table(*heads, title="a decode step")
    for row in of(record, "step"):
        parts = ["–" if row[key] is None else f"{row[key]:.3g}" for key in PARTS_OF_A_STEP]
        batch = f"{row['sequences']}, {row['tokens']:,} tokens"
        shown.add_row(row["model"], batch, row["name"], f"{row['ms']:.3g}", *parts, f"{row['of_roofline']:.2f}")
    return shown


def _peer(record: Record):
    from rich.table import Table

    heads = ("model", "engine", "requests", "output tokens", "tokens/s")
    shown = Table(*heads, title="beside transformers, on one workload")
    for row in of(record, "peer"):
        name = f"{row['name']} {row.get('version', '')}".rstrip()
        speed = f"{row['tokens_per_s']:,.0f}"
        shown.add_row(row["model"], name, str(row["requests"]), f"{row['output_tokens']:,}", speed)
    return shown


def _policies(record: Record):
    from rich.table import Table

    shown = Table("policy", "tokens/s", "TTFT, ms: median", "p99", "TPOT, ms: median", "p99", "longest wait, ms",
                  title="policies, requests that come one after the other")  # fmt: skip
    for row in of(record, "policies"):
        waits = [_ms(row[f"{key}_{what}_ms"]) for key in ("ttft", "tpot") for what in ("median", "p99")]
        shown.add_row(row["name"], f"{row['tokens_per_s']:,.0f}", *waits, _ms(row["wait_longest_ms"]))
    return shown


def of(record: Record, sweep: str) -> list[dict]:
    """The rows of a sweep."""
    return [row for row in record.rows if row["sweep"] == sweep]


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _speed(row: dict) -> str:
    return f"{row['tokens_per_s']:,.0f} ({row['of_roofline']:.2f})"
