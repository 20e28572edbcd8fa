"""The README's lines on serving, in the figures of the record.

    python -m llmsys.course.authoring.readme_figures

Run this again after the engine has been measured anew; a test compares the README with what is written here.
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
AFTER = "The row softmax of "
"""How the line begins before which these stand."""


def serving_lines(record: Record) -> str:
    """What the README says of the engine. Bold is below its target."""
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


def main() -> None:
    """Write the lines into the README."""
    path = lessons_dir().parent / "README.md"
    path.write_text(
        with_lines(path.read_text(encoding="utf-8"), serving_lines(recorded("serving", "H200"))), encoding="utf-8"
    )
    print(path)


def with_lines(readme: str, lines: str) -> str:
    """The README with these lines in their place. ValueError where it has none, or several."""
    if readme.count(f"\n{AFTER}") != 1:
        raise ValueError(f"the README must have one line that begins with {AFTER!r}, before which these stand")
    before, after = readme.split(f"\n{AFTER}")
    return before.partition("\nServing, on an ")[0] + "\n" + lines + AFTER + after


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
