"""What MEASURED.md and the README say of serving: figures of the record, bold below a target, each in one place."""

from pathlib import Path

import pytest

from llmsys.bench import recorded
from llmsys.bench.record import Record
from llmsys.course.authoring.measured_figures import TARGETS, serving_lines, serving_row, with_lines, with_row

README, MEASURED = (
    (Path(__file__).parents[3] / name).read_text(encoding="utf-8") for name in ("README.md", "MEASURED.md")
)
AGAIN = "write them anew with python -m llmsys.course.authoring.measured_figures"


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


def test_both_files_have_the_records_figures():
    lines, row = serving_lines(recorded("serving", "H200")), serving_row(recorded("serving", "H200"))
    assert lines in MEASURED and row in README, AGAIN
    assert with_lines(MEASURED, lines) == MEASURED and with_row(README, row) == README


def test_the_row_says_speeds_and_what_stands_beside_them():
    assert serving_row(record(one=0.9)) == (
        "| Serving, H200, tokens/s | Qwen3-0.6B's shape 20,000, one request **1,440**; SmolLM2-135M's shape 60,000, "
        "one request **2,700** | 0.75 of what reading alone allows; 20 × transformers' continuous batching, in a short "
        "run |\n"
    )


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


def test_lines_and_row_are_put_in_one_place_and_replaced_there():
    measured = "one\n\n## Serving\n\nold\n\n## Rest\n\nServing.\n"
    assert with_lines(measured, "1\nand 2\n") == "one\n\n## Serving\n\n1\nand 2\n\n## Rest\n\nServing.\n"
    assert with_row("a\n| Serving old |\nb\n", "| Serving new |\n") == "a\n| Serving new |\nb\n"
    for nothing in ("", measured.replace("## Serving", "## Service"), measured + measured, "## Serving\n\nold\n"):
        with pytest.raises(ValueError, match="must have one part"):
            with_lines(nothing, "1\n")
    for nothing in ("", "| Serving\n| Serving\n"):
        with pytest.raises(ValueError, match="must have one line"):
            with_row(nothing, "| Serving |\n")
