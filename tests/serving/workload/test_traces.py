"""Traces' files: read as they are written, refused with the line where they are not, fetched if they are the same."""

import hashlib
import json
from dataclasses import replace

import pytest

from llmsys.serving.workload import TRACES, Arrival, Trace, fetch_trace, load_trace, read_azure, read_mooncake
from llmsys.serving.workload.traces import trace_folder
from tests.support.traces import trace_path

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"
LINE = {"timestamp": 500, "input_length": 600, "output_length": 3, "hash_ids": [0, 1]}


def azure(tmp_path, *lines):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def mooncake(tmp_path, *rows):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_azures_form(tmp_path):
    path = azure(tmp_path, HEAD, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109",
                 "2023-11-17 00:00:00,1,1")  # fmt: skip
    found = read_azure(path)
    assert found[0] == Arrival(0.0, 374, 44) and found[1][1:] == (396, 109, ()) and found[2][1:3] == (1, 1)
    assert found[1].at == pytest.approx(4.314579) and found[2].at == pytest.approx(20_653.31941)


def test_mooncakes_form(tmp_path):
    path = mooncake(tmp_path, LINE, LINE | {"timestamp": 1250, "input_length": 512, "hash_ids": [7]})
    assert read_mooncake(path) == [Arrival(0.0, 600, 3, (0, 1)), Arrival(0.75, 512, 3, (7,))]


@pytest.mark.parametrize(
    "lines, words",
    [
        ([], "line 1: the columns must be TIMESTAMP,ContextTokens,GeneratedTokens, got nothing"),
        (["TIMESTAMP,ContextTokens"], "line 1: the columns must be"),
        ([HEAD], "has no request"),
        ([HEAD, "2023-11-16 18:15:46,3,4", "2023-11-16 18:15:47,3"], "line 3: there must be 3 columns, got 2"),
        ([HEAD, "yesterday,3,4"], "line 2: TIMESTAMP must be like .* got 'yesterday'"),
        ([HEAD, "2023-11-16 18:15:46,,4"], "line 2: ContextTokens must be a whole number .* got ''"),
        ([HEAD, "2023-11-16 18:15:46,3,0"], "line 2: GeneratedTokens must be a whole number of tokens from 1 on"),
        ([HEAD, "2023-11-16 18:15:46,3.5,1"], "line 2: ContextTokens must be a whole number"),
        ([HEAD, "2023-11-16 18:15:46,-3,1"], "line 2: ContextTokens must be a whole number"),
        ([HEAD, "2023-11-16 18:15:46,3,1", "2023-11-16 18:15:45,3,1"], "line 3: requests must stand in the order"),
        ([HEAD, "2023-11-16 18:15:46,3,1", "2023-11-16 18:15:47+01:00,3,1"], "line 3: .* time zone"),
    ],
)
def test_a_line_that_is_not_in_azures_form_is_named(tmp_path, lines, words):
    path = azure(tmp_path, *lines) if lines else azure(tmp_path)
    if not lines:
        path.write_text("")
    with pytest.raises(ValueError, match=words) as refused:
        read_azure(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "rows, words",
    [
        ([LINE, "{"], "line 2: it must be JSON"),
        ([""], "line 1: it must be JSON"),
        (["[1]"], r"line 1: it must be an object, got \[1\]"),
        ([{"timestamp": 0}], "line 1: there must be a input_length"),
        ([LINE | {"timestamp": "now"}], "line 1: timestamp must be milliseconds from 0 on, got 'now'"),
        ([LINE | {"timestamp": True}], "line 1: timestamp must be"),
        (['{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": [1]}'], "line 1: timestamp must be"),
        ([LINE | {"output_length": 0}], "line 1: output_length must be a whole number of tokens from 1 on, got 0"),
        ([LINE | {"input_length": 2.5}], "line 1: input_length must be a whole number"),
        ([LINE | {"hash_ids": [0]}], "line 1: hash_ids must be one for each 512 of 600 tokens: 2, got 1"),
        ([LINE | {"hash_ids": [0, -1]}], "line 1: hash_ids must be whole numbers from 0 on"),
        ([LINE | {"hash_ids": None}], "line 1: hash_ids must be whole numbers from 0 on"),
        ([LINE, LINE | {"timestamp": 499}], "line 2: requests must stand in the order"),
    ],
)
def test_a_line_that_is_not_in_mooncakes_form_is_named(tmp_path, rows, words):
    path = mooncake(tmp_path, *rows)
    with pytest.raises(ValueError, match=words) as refused:
        read_mooncake(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", TRACES)
def test_the_published_traces_are_what_their_checksums_say(name):
    path, trace = trace_path(name), TRACES[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == trace.sha256
    found = trace.read(path)
    assert len(found) == trace.requests and found[0].at == 0 and found[-1].at > 1000


def test_a_trace_is_fetched_once_checked_and_read(tmp_path, monkeypatch):
    source = mooncake(tmp_path, LINE)
    url, sha256 = source.as_uri(), hashlib.sha256(source.read_bytes()).hexdigest()
    traces = {"mine": Trace(url, sha256, 1, read_mooncake)}
    got, folder = [], tmp_path / "cache"
    path = fetch_trace("mine", folder=folder, traces=traces, progress=got.append)
    assert path == folder / "trace.jsonl" and read_mooncake(path) == [Arrival(0.0, 600, 3, (0, 1))]
    assert sum(got) == source.stat().st_size
    source.unlink()
    assert fetch_trace("mine", folder=folder, traces=traces) == path, "it is there already"
    path.write_text("spoilt")
    with pytest.raises(OSError):
        fetch_trace("mine", folder=folder, traces=traces)
    source.write_text("something else")
    with pytest.raises(ValueError, match="is not the file that it was: its SHA-256 is"):
        fetch_trace("mine", folder=folder, traces=traces)
    assert [each.name for each in folder.iterdir()] == ["trace.jsonl"], "nothing half done is left"
    path.unlink()
    monkeypatch.setitem(TRACES, "mooncake-synthetic", replace(TRACES["mooncake-synthetic"], url=url))
    with pytest.raises(FileNotFoundError, match="`llmsys data mooncake-synthetic` fetches it"):
        load_trace("mooncake-synthetic", folder=folder)
    path.write_text(json.dumps(LINE))
    monkeypatch.setenv("LLMSYS_TRACES", str(folder))
    assert trace_folder() == folder and len(load_trace("mooncake-synthetic")) == 1
    with pytest.raises(ValueError, match="trace must be one of azure-code"):
        fetch_trace("nobody's")


def test_where_traces_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMSYS_TRACES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert trace_folder() == tmp_path / "llmsys/traces"
