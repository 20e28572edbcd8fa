"""`llmsys data`: fetches what was published, says where it is, and what to do where there is no network."""

import hashlib
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llmsys.course.cli import app
from llmsys.serving.workload import TRACES

ROW = json.dumps({"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]})


def run(*arguments):
    return CliRunner().invoke(app, ["data", *arguments])


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A trace that is published on this disk."""
    path = tmp_path / "published" / "conversation_trace.jsonl"
    path.parent.mkdir()
    path.write_text(ROW)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    trace = replace(TRACES["mooncake-conversation"], url=path.as_uri(), sha256=sha256, requests=1)
    monkeypatch.setitem(TRACES, "mooncake-conversation", trace)
    return path


def test_a_trace_is_fetched_into_a_folder(published, tmp_path):
    folder = tmp_path / "here"
    for _ in range(2):
        done = run("mooncake-conversation", "--folder", str(folder))
        assert done.exit_code == 0 and done.stdout == f"mooncake-conversation: 1 requests, {folder / published.name}\n"
        published.unlink(missing_ok=True)  # the second time it is there
    assert (folder / published.name).read_text() == ROW


def test_what_is_not_what_was_published_is_refused(published, tmp_path):
    published.write_text("another")
    done = run("mooncake-conversation", "--folder", str(tmp_path / "here"))
    assert done.exit_code == 2 and "is not the file that it was" in done.output
    assert list((tmp_path / "here").iterdir()) == []


def test_where_it_cannot_be_reached_there_is_another_way(published, tmp_path):
    published.unlink()
    done = run("mooncake-conversation", "--folder", str(tmp_path / "here"))
    assert done.exit_code == 2 and "cannot be reached" in done.output and published.name in done.output


def test_a_trace_that_there_is_not(tmp_path):
    done = run("azure", "--folder", str(tmp_path))
    assert done.exit_code == 2 and "no trace 'azure'; there are:" in " ".join(done.output.split())
