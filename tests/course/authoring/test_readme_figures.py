"""The README's lines on serving: figures of the record, bold below a target, in one place."""

from pathlib import Path

import pytest

from llmsys.bench import recorded
from llmsys.bench.record import Record
from llmsys.course.authoring.readme_figures import TARGETS, serving_lines, with_lines

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def record(**speeds):
    rows = [
        {"sweep": sweep, "name": "all on", "model": model, "requests": 256, "prompt_tokens": 1000,
         "output_tokens": 2000, "tokens_per_s": speeds.get(sweep, 1.0) * target, "of_roofline": 0.7512}
        for (model, sweep), target in TARGETS.items()
    ]  # fmt: skip
    step = {"ms": 6.74, "attention_ms": 5.1, "other_ms": 1.5, "idle_ms": 0.14, "roofline_ms": 4.8, "sequences": 256}
    rows.append({"sweep": "step", "name": "all on", "model": "Qwen3-0.6B", "batch": "full batch"} | step)
    rows.append(
        {"sweep": "step", "name": "all off", "model": "Qwen3-0.6B", "batch": "full batch"} | step | {"ms": 99.0}
    )
    peer = {"sweep": "peer", "model": "Qwen3-0.6B"}
    rows += [peer | {"name": "llmsys", "tokens_per_s": 9000.0}, peer | {"name": "transformers", "tokens_per_s": 450.0}]
    return Record("serving", "NVIDIA H200", {}, "2026-01-01", rows)


def test_the_readme_has_the_records_figures():
    lines = serving_lines(recorded("serving", "H200"))
    assert lines in README, "regenerate them with python -m llmsys.course.authoring.readme_figures"
    assert with_lines(README, lines) == README


def test_the_lines_say_speeds_parts_and_the_peer_and_are_no_wider_than_the_others():
    lines = serving_lines(record())
    text = " ".join(lines.split())
    assert "on an H200" in text and "20,000 tokens/s of answers, 0.75 of what reading alone allows" in text
    assert "takes 6.7 ms: attention 5.1, other kernels 1.5, idle 0.1 (reading alone: 4.8)" in text
    assert "9,000 tokens/s, where transformers' continuous batching, with torch's attention, has 450." in text
    assert "**" not in text and max(map(len, lines.splitlines())) <= 150


def test_what_is_below_its_target_is_bold():
    text = serving_lines(record(one=0.9))
    assert "**1,440**" in text and "**2,700**" in text and "**20,000**" not in text


def test_lines_are_put_in_one_place_and_replaced_there():
    readme = "one\nSerwing.\nThe row softmax of x\ntwo\n"
    once = with_lines(readme, "Serving, on an X: 1\nand 2\n")
    assert once == "one\nSerwing.\nServing, on an X: 1\nand 2\nThe row softmax of x\ntwo\n"
    assert (
        with_lines(once, "Serving, on an X: 3\n") == "one\nSerwing.\nServing, on an X: 3\nThe row softmax of x\ntwo\n"
    )
    with pytest.raises(ValueError, match="must have one line"):
        with_lines("nothing", "Serving, on an X: 3\n")
