"""A record: what was measured, on what, with what, and when. Records of GPUs are committed under `recorded/`."""

import datetime
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import torch


@dataclass(frozen=True)
class Record:
    """One run of a benchmark. `rows` are plain dicts of numbers and strings, each with a "name"; `missing` says why a
    peer was not measured."""

    benchmark: str
    device: str
    versions: dict[str, str]
    date: str
    rows: list[dict]
    missing: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write `<benchmark>-<device>.json` into a folder, which is made if need be. Returns the path."""
        path = Path(folder) / f"{self.benchmark}-{_slug(self.device)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        rows = ",\n".join("  " + json.dumps(row) for row in self.rows)
        path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
        return path


def new_record(benchmark: str, rows: list[dict], missing: dict[str, str]) -> Record:
    """A record of now, on this machine's GPU if it has one, otherwise on its CPU."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"
    return Record(benchmark, device, _versions(), datetime.date.today().isoformat(), rows, missing)


def load(path) -> Record:
    """Read a record's file.

    Raises ValueError where the file is no record, naming it.
    """
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a record of llmsys.bench: {error}") from None


def recorded(benchmark: str, device: str = "H100") -> Record:
    """The committed record of a benchmark on a GPU whose name contains `device`.

    Raises LookupError where there is none, and lists those that there are.
    """
    for record in all_recorded(benchmark):
        if device.lower() in record.device.lower():
            return record
    known = ", ".join(f"{record.benchmark} on {record.device}" for record in all_recorded()) or "none"
    raise LookupError(f"no record of {benchmark!r} on {device!r}; recorded: {known}")


def all_recorded(benchmark: str | None = None) -> list[Record]:
    """All committed records of a benchmark (None: of all of them), one for each GPU, in the order of their names."""
    there = sorted((files("llmsys.bench") / "recorded").iterdir(), key=lambda path: path.name)
    records = [load(path) for path in there if path.name.endswith(".json")]
    return [record for record in records if benchmark in (None, record.benchmark)]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        found["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        pass
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _slug(device: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())
