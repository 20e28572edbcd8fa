"""`python -m llmsys.bench NAME [--out DIR] [--quick]`: run one benchmark, print its table, save its record."""

import argparse
import sys
from importlib import import_module

from llmsys.bench import BENCHMARKS
from llmsys.hardware.disk import check_writable


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llmsys.bench", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS, help="which benchmark")
    parser.add_argument("--out", metavar="DIR", help="where to save the record (JSON); not saved without it")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: does it run at all?")
    chosen = parser.parse_args(arguments)
    run(chosen.name, out=chosen.out, quick=chosen.quick)
    return 0


def run(name: str, *, out: str | None = None, quick: bool = False) -> None:
    """Run a benchmark by its name; print the table and what is missing; save the record in `out` if that is given.

    Raises ValueError for a name that is not in BENCHMARKS; OSError, before anything is measured, where nothing can be
    written to `out`.
    """
    from rich.console import Console

    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark is called {name!r}; there are: {', '.join(BENCHMARKS)}")
    if out:
        check_writable(out, need=10**6)
    module = import_module(BENCHMARKS[name])
    record = module.measure(quick)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(module.table(record))
    for peer, reason in record.missing.items():
        console.print(f"not measured: {peer} ({reason})")
    if out:
        console.print(f"saved as {record.save(out)}")


if __name__ == "__main__":
    sys.exit(main())
