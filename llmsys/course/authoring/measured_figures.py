"""What MEASURED.md and the README say of serving, in the figures of the record.

    python -m llmsys.course.authoring.measured_figures

Run this again after the engine has been measured anew; a test compares both files with what is written here.
"""

import textwrap

from llmsys.bench import Record, recorded
from llmsys.course.manifest import lessons_dir

TARGETS = {
    ("Qwen3-0.6B", "throughput"): 20_000,
    ("Qwen3-0.6B", "one"): 1600,
    ("SmolLM2-135M", "throughput"): 60_000,
    ("SmolLM2-135M", "one"): 3000,
}
"""Tokens a second, by model and sweep."""
WIDTH = 148
BEFORE, AFTER = "## Serving\n\n", "\n## "
"""What stands before and behind the lines in MEASURED.md."""
ROW = "| Serving"
"""How the README's row begins."""


def serving_lines(record: Record) -> str:
    """What MEASURED.md says of the engine. Bold is below its target."""
    rows = {(row.get("model"), row["sweep"], row["name"]): row for row in record.rows if row["sweep"] != "kernels"}
    steps = {
        (row["model"], row["batch"]): row for row in record.rows if row["sweep"] == "step" and row["name"] == "all on"
    }
    big, small = dict.fromkeys(model for model, _ in TARGETS)
    many, step = rows[big, "throughput", "all on"], steps[big, "full batch"]
    speed = {key: _speed(rows, *key) for key in TARGETS}
    said = (
        f"Serving, on an {record.device.removeprefix('NVIDIA ')} (random bf16 weights; {many['requests']} requests, "
        f"{many['prompt_tokens']:,} tokens of prompts and {many['output_tokens']:,} of answers; "
        f"`python -m llmsys.bench serving`): {big}'s shape {speed[big, 'throughput']} tokens/s of answers, "
        f"{many['of_roofline']:.2f} of what reading alone allows at a copy's speed, and {speed[big, 'one']} with one "
        f"request; {small}'s {speed[small, 'throughput']} and {speed[small, 'one']} (targets for "
        f"an H100, which copies 3.0 TB/s: {_targets(big)}, the first of which is 0.75 of reading alone there; "
        f"{_targets(small)}). A decode step of all {step['sequences']} takes {step['ms']:.1f} ms: {_parts(step)}."
    )
    if theirs := rows.get((big, "peer", "transformers")):
        ours = rows[big, "peer", "llmsys"]
        said += (
            f" On a short workload {ours['tokens_per_s']:,.0f} tokens/s, where transformers' continuous batching, with "
            f"torch's attention, has {theirs['tokens_per_s']:,.0f}."
        )
    return "\n".join(textwrap.wrap(said, WIDTH, break_long_words=False, break_on_hyphens=False)) + "\n"


def serving_row(record: Record) -> str:
    """The row of the README's table."""
    rows = {(row.get("model"), row["sweep"], row["name"]): row for row in record.rows if row["sweep"] != "kernels"}
    big, small = dict.fromkeys(model for model, _ in TARGETS)
    speed = {key: _speed(rows, *key) for key in TARGETS}
    shown = [f"{name}'s shape {speed[name, 'throughput']}, one request {speed[name, 'one']}" for name in (big, small)]
    beside = f"{rows[big, 'throughput', 'all on']['of_roofline']:.2f} of what reading alone allows"
    if theirs := rows.get((big, "peer", "transformers")):
        ours = rows[big, "peer", "llmsys"]
        times = ours["tokens_per_s"] / theirs["tokens_per_s"]
        beside += f"; {times:.0f} × transformers' continuous batching, in a short run"
    return f"{ROW}, {record.device.removeprefix('NVIDIA ')}, tokens/s | {'; '.join(shown)} | {beside} |\n"


def main() -> None:
    """Write both."""
    record, root = recorded("serving", "H200"), lessons_dir().parent
    for name, put, text in (
        ("MEASURED.md", with_lines, serving_lines(record)),
        ("README.md", with_row, serving_row(record)),
    ):
        path = root / name
        path.write_text(put(path.read_text(encoding="utf-8"), text), encoding="utf-8")
        print(path)


def with_lines(measured: str, lines: str) -> str:
    """MEASURED.md with these lines in their place. ValueError where it has none, or several."""
    before, heading, after = measured.partition(BEFORE)
    _, following, after = after.partition(AFTER)
    if not heading or not following or BEFORE in after:
        raise ValueError(f"MEASURED.md must have one part {BEFORE.strip()!r}, and another one behind it")
    return before + heading + lines + following + after


def with_row(readme: str, row: str) -> str:
    """The README with this row in its place. ValueError where it has none, or several."""
    lines = readme.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.startswith(ROW)]
    if len(places) != 1:
        raise ValueError(f"README.md must have one line that begins with {ROW!r}, got {len(places)}")
    lines[places[0]] = row
    return "".join(lines)


def _speed(rows: dict, model: str, sweep: str) -> str:
    speed = rows[model, sweep, "all on"]["tokens_per_s"]
    return f"{speed:,.0f}" if speed >= TARGETS[model, sweep] else f"**{speed:,.0f}**"


def _targets(model: str) -> str:
    return ", ".join(f"{TARGETS[model, sweep]:,}" for sweep in ("throughput", "one"))


def _parts(step: dict) -> str:
    if step["idle_ms"] is None:
        return f"at least {step['roofline_ms']:.1f} by reading alone"
    return (
        f"attention {step['attention_ms']:.1f}, other kernels {step['other_ms']:.1f}, idle {step['idle_ms']:.1f} "
        f"(reading alone: {step['roofline_ms']:.1f})"
    )


if __name__ == "__main__":
    main()
