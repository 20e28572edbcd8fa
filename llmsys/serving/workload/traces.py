"""Traces of real services: their files, where they come from, and how they are read.

    read_azure("AzureLLMInferenceTrace_conv.csv")        [Arrival(at=0.0, prompt=374, output=44), …]
    read_mooncake("conversation_trace.jsonl")            [Arrival(at=0.0, prompt=6758, output=500, blocks=(0, 1, …)), …]
    load_trace("mooncake-conversation")                  one that `llmsys data` has fetched

**Azure's** are CSV, a request a line: when it came, its prompt's tokens and its answer's.

    TIMESTAMP,ContextTokens,GeneratedTokens
    2023-11-16 18:15:46.6805900,374,44

**Mooncake's** are JSON, an object a line. `timestamp` is in ms; `hash_ids` has an id for each 512 tokens of the prompt,
of these tokens and all before them. So two prompts are equal as far as their ids are.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …]}

Who they are by stands in `lengths`. The files are not part of the project: `fetch_trace` gets one from where it was
published, at the commit that is named here, and keeps it if its SHA-256 is the one that is named here, too.
"""

import csv
import hashlib
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmsys.serving.workload.arrivals import BLOCK, Arrival

AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data/"
MOONCAKE = (
    "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3cca71daccf2a7afb8fe3f0295358f70e3a69fdb/"
    "FAST25-release/traces/"
)
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST = 1 << 28
"""Bytes that a trace's file may have: more is not one of these."""


def read_azure(path: str | Path) -> list[Arrival]:
    """The requests of a file in Azure's form, the first one at 0 seconds.

    ValueError for a line that is not in that form: with the file, the line's number and what is wrong.
    """
    found: list[Arrival] = []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        head = next(rows, [])
        if tuple(head) != COLUMNS:
            got = ",".join(head) or "nothing"
            raise ValueError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}, got {got}")
        start = None
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(COLUMNS):
                raise ValueError(f"{where}: there must be {len(COLUMNS)} columns, got {len(row)}")
            try:
                when = datetime.fromisoformat(row[0])
            except ValueError:
                raise ValueError(
                    f"{where}: TIMESTAMP must be like 2023-11-16 18:15:46.6805900, got {row[0]!r}"
                ) from None
            start = when if start is None else start
            lengths = [_count(where, name, text) for name, text in zip(COLUMNS[1:], row[1:], strict=True)]
            try:
                at = (when - start).total_seconds()
            except TypeError:
                raise ValueError(f"{where}: TIMESTAMP must have a time zone in all lines or in none") from None
            found.append(_in_order(where, Arrival(at, *lengths), found))
    return _some(path, found)


def read_mooncake(path: str | Path) -> list[Arrival]:
    """The requests of a file in Mooncake's form, the first one at 0 seconds.

    ValueError for a line that is not in that form: with the file, the line's number and what is wrong.
    """
    found: list[Arrival] = []
    start = None
    for where, row in _objects(path):
        missing = [key for key in ("timestamp", "input_length", "output_length", "hash_ids") if key not in row]
        if missing:
            raise ValueError(f"{where}: there must be a {missing[0]}")
        time, blocks = row["timestamp"], row["hash_ids"]
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < 1e15:
            raise ValueError(f"{where}: timestamp must be milliseconds from 0 on, got {time!r}")
        start = time if start is None else start
        prompt, output = (_count(where, key, row[key]) for key in ("input_length", "output_length"))
        if not isinstance(blocks, list) or any(type(key) is not int or key < 0 for key in blocks):
            raise ValueError(f"{where}: hash_ids must be whole numbers from 0 on")
        if len(blocks) != -(-prompt // BLOCK):
            raise ValueError(
                f"{where}: hash_ids must be one for each {BLOCK} of {prompt} tokens: {-(-prompt // BLOCK)}, "
                f"got {len(blocks)}"
            )
        found.append(_in_order(where, Arrival((time - start) / 1000, prompt, output, tuple(blocks)), found))
    return _some(path, found)


@dataclass(frozen=True)
class Trace:
    """A published trace."""

    url: str
    sha256: str
    requests: int
    read: Callable[[str | Path], list[Arrival]]

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


TRACES = {
    "azure-code": Trace(
        url=AZURE + "AzureLLMInferenceTrace_code.csv",
        sha256="54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        requests=8819,
        read=read_azure,
    ),
    "azure-conversation": Trace(
        url=AZURE + "AzureLLMInferenceTrace_conv.csv",
        sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        requests=19_366,
        read=read_azure,
    ),
    "mooncake-conversation": Trace(
        url=MOONCAKE + "conversation_trace.jsonl",
        sha256="b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        requests=12_031,
        read=read_mooncake,
    ),
    "mooncake-synthetic": Trace(
        url=MOONCAKE + "synthetic_trace.jsonl",
        sha256="bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
        requests=3993,
        read=read_mooncake,
    ),
}
"""By name; those of `lengths.LENGTHS`, and one more."""


def trace_folder() -> Path:
    """Where fetched traces are kept: LLMSYS_TRACES, or a folder of this user's cache."""
    if chosen := os.environ.get("LLMSYS_TRACES"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmsys" / "traces"


def load_trace(name: str, *, folder: str | Path | None = None) -> list[Arrival]:
    """The requests of a trace in TRACES whose file is in the folder (None: `trace_folder()`).

    ValueError for a name that is not there, or a line that is not as it should be; FileNotFoundError, which names the
    command that fetches it, where the file is not there.
    """
    trace, path = _trace(name), (trace_folder() if folder is None else Path(folder)) / _trace(name).file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `llmsys data {name}` fetches it, once")
    return trace.read(path)


def fetch_trace(
    name: str,
    *,
    folder: str | Path | None = None,
    traces: Mapping[str, Trace] = TRACES,
    progress: Callable[[int], object] = lambda bytes_: None,
) -> Path:
    """Gets a trace from where it was published, unless it is in the folder; says where it is now.

    `progress` is told how many bytes more there are, now and then. ValueError for a name that is not there, or where
    what came is not what was published; OSError where it cannot be reached. Either way no file is left.
    """
    trace = _trace(name, traces)
    folder = trace_folder() if folder is None else Path(folder)
    path = folder / trace.file
    if path.is_file() and _sha256(path) == trace.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        part, size = Path(new) / trace.file, 0
        with urllib.request.urlopen(trace.url, timeout=60) as source, part.open("wb") as target:
            while (piece := source.read(1 << 16)) and size <= MOST:
                target.write(piece)
                size += len(piece)
                progress(len(piece))
        if (found := _sha256(part)) != trace.sha256:
            raise ValueError(f"{trace.url} is not the file that it was: its SHA-256 is {found}, not {trace.sha256}")
        part.replace(path)
    return path


def _trace(name: str, traces: Mapping[str, Trace] = TRACES) -> Trace:
    if name not in traces:
        raise ValueError(f"trace must be one of {', '.join(traces)}, got {name!r}")
    return traces[name]


def _objects(path: str | Path) -> Iterator[tuple[str, dict]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: it must be JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where}: it must be an object, got {line.strip()[:40]}")
            yield where, row


def _count(where: str, name: str, value: object) -> int:
    """A number of tokens, given as a number or in digits."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if type(number) is not int or number < 1:
        raise ValueError(f"{where}: {name} must be a whole number of tokens from 1 on, got {value!r}")
    return number


def _in_order(where: str, arrival: Arrival, before: list[Arrival]) -> Arrival:
    if before and arrival.at < before[-1].at:
        raise ValueError(f"{where}: requests must stand in the order in which they came, and this one came before")
    return arrival


def _some(path: str | Path, found: list[Arrival]) -> list[Arrival]:
    if not found:
        raise ValueError(f"{path} has no request")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
