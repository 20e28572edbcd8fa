"""How results, hints and predictions look: as text in a terminal, as a card in JupyterLab.

A passed check looks the same on every machine and in every run, because nbval compares it: no times, devices or paths.
Cards take their colours from JupyterLab's theme, light or dark, and stand on their own where there is none (GitHub,
nbviewer). What a colour says is also said by a glyph: ✓ on blue, ✗ on orange, a pair that colour-blind eyes tell apart.
"""

import textwrap
from html import escape

from llmsys.course import manifest

FAIL, PASS, NOTE = "#b34700", "#0b66a8", "#6b6b6b"  # white text on each has a contrast of at least 4.5 : 1
ANNOUNCED = "What this check will look for"
_FONT = "color:var(--jp-content-font-color1,inherit);font-size:var(--jp-content-font-size1,14px);line-height:1.5"
_MONO = (
    "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px);white-space:pre-wrap;"
    "overflow-wrap:anywhere;margin:0;padding:0;background:none;color:inherit"
)
_RULE = "border-top:1px solid var(--jp-border-color2,#bbb)"


def result_text(result) -> str:
    """A `Result` as plain text."""
    lines = [f"{_glyph(result.passed)} {manifest.label(result.id)}" + (" passed" if result.passed else "")]
    if result.failure and result.failure.kind == "stub":
        return f"… {manifest.label(result.id)} is {result.failure.message}"
    lines += [f"  {_glyph(each.passed)} {each.name}" for each in result.properties]
    if result.misconception:
        lines += _wrapped(f"This looks like: {_sentences(result.misconception)}", indent="      ")
    for label, text in _rows(result):
        first, *rest = text.splitlines() or [""]
        lines += [f"      {label:<10}{first}", *(f"      {'':<10}{line}" for line in rest)]
    if result.hint_number:
        lines += ["", *_wrapped(_offer(result))]
    return "\n".join(lines)


def result_html(result) -> str:
    """A `Result` as an HTML card."""
    if result.failure and result.failure.kind == "stub":
        return _card(NOTE, "…", manifest.label(result.id), f"<div>{escape(result.failure.message)}</div>")
    items = "".join(
        f'<li style="list-style:none;margin:0">{_chip(each.passed)} {escape(each.name)}</li>'
        for each in result.properties
    )
    body = [f'<ul style="margin:4px 0;padding:0">{items}</ul>']
    if result.misconception:
        body.append(_note("This looks like:", _sentences(result.misconception)))
    if rows := _rows(result):
        cells = "".join(
            f'<div style="opacity:.8">{escape(label)}</div>'
            + (f"<div>{escape(text)}</div>" if label == "why" else f'<pre style="{_MONO}">{escape(text)}</pre>')
            for label, text in rows
        )
        grid = "display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:6px 0 6px 26px"
        body.append(f'<div style="{grid}">{cells}</div>')
    if result.hint_number:
        body.append(_note(_offer(result, call=False), "", f'hint("{result.id}")'))
    title = f"{manifest.label(result.id)} passed" if result.passed else manifest.label(result.id)
    return _card(PASS if result.passed else FAIL, _glyph(result.passed), title, "".join(body))


def announcement(passed: str) -> dict[str, str]:
    """The output of a check that passed, `result_text`, as it stands under a check that nobody has run yet: what it
    will look for. Text and HTML by MIME type; empty where `passed` is something else."""
    title, *lines = passed.splitlines() or [""]
    marks = f"{_glyph(True)} ", f"  {_glyph(True)} "
    if not title.startswith(marks[0]) or not all(line.startswith(marks[1]) for line in lines):
        return {}
    names = [line.removeprefix(marks[1]) for line in lines]
    items = "".join(f'<li style="margin:0">{escape(name)}</li>' for name in names)
    return {
        "text/plain": "\n".join([f"… {ANNOUNCED}", *(f"  · {name}" for name in names)]),
        "text/html": _card(NOTE, "…", ANNOUNCED, f'<ul style="margin:4px 0;padding:0 0 0 20px">{items}</ul>'),
    }


def hint_text(hint) -> str:
    """A `Hint` as plain text."""
    if not hint.of:
        return f"{manifest.label(hint.id)}: {hint.text}"
    return "\n".join(_wrapped(f"Hint {hint.number} of {hint.of}:{_own_lines(hint.text)}", indent=""))


def hint_html(hint) -> str:
    """A `Hint` as an HTML card."""
    title = f"{manifest.label(hint.id)}: hint {hint.number} of {hint.of}" if hint.of else manifest.label(hint.id)
    body = f'<pre style="{_MONO}">{escape(hint.text)}</pre>' if "\n" in hint.text else f"<div>{escape(hint.text)}</div>"
    return _card(NOTE, "?", title, body)


def bars_html(title: str, rows: list[tuple[str, str, float, str]], note: str) -> str:
    """A card with a bar for each row, (label, figure, length between 0 and 1, colour), and a sentence under them."""
    bars = "".join(
        f"<div>{escape(label)}</div><div>{escape(figure)}</div>"
        f'<div style="background:{colour};height:.8em;min-width:2px;width:{100 * length:.1f}%"></div>'
        for label, figure, length, colour in rows
    )
    columns = "grid-template-columns:max-content max-content minmax(80px,320px)"
    grid = f"display:grid;{columns};gap:2px 12px;align-items:center"
    summary = "; ".join(f"{label} {figure}" for label, figure, *_ in rows)
    drawn = f'<div role="img" aria-label="{escape(summary)}" style="{grid}">{bars}</div>' if rows else ""
    return _card(NOTE, "±", title, f"{drawn}<div>{escape(note)}</div>")


def note_html(title: str, text: str) -> str:
    """A card that says one thing."""
    return _card(NOTE, "±", title, f"<div>{escape(text)}</div>")


def _rows(result) -> list[tuple[str, str]]:
    """The failed property's particulars, (label, text)."""
    failure = result.failure
    if failure is None:
        return []
    # A property's reason explains a wrong value. What breaks a rule, whatever was asked, breaks it for other reasons.
    broken = failure.kind in ("forbidden", "modified", "compile")
    why = "" if broken else next((each.why for each in result.properties if not each.passed), "")
    rows = [
        ("problem", failure.message),
        ("why", why),
        ("called", failure.call),
        ("got", failure.got),
        ("expected", failure.expected),
        ("printed", _beginning(failure.printed)),
    ]
    return [(label, text) for label, text in rows if text]


def _beginning(text: str, lines: int = 8, characters: int = 400) -> str:
    short = "\n".join(text[:characters].splitlines()[:lines])
    return short if short == text.rstrip("\n") else short + " …"


def _sentences(misconception) -> str:
    return f"{misconception.message} {misconception.why}".strip()


def _own_lines(text: str) -> str:
    """A text of several lines (pseudocode) begins on its own line, so that its columns stay aligned."""
    return f"\n{text}" if "\n" in text else f" {text}"


def _offer(result, call: bool = True) -> str:
    offer = f"Hint {result.hint_number} of {result.hints}, for the asking:"
    return f'{offer} hint("{result.id}")' if call else offer


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines of at most 110 characters; line breaks of the text's own stay, for pseudocode has them."""
    lines = text.splitlines()
    wrapped = [textwrap.wrap(line, 110, subsequent_indent=_margin(line)) or [""] for line in lines]
    return [indent + line for part in wrapped for line in part]


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _glyph(passed: bool) -> str:
    return "✓" if passed else "✗"


def _chip(passed: bool) -> str:
    colour = PASS if passed else FAIL
    style = f"display:inline-block;width:1.35em;text-align:center;border-radius:3px;background:{colour};color:#fff"
    return f'<span style="{style};font-size:.85em;margin-right:4px">{_glyph(passed)}</span>'


def _note(label: str, text: str, more: str = "") -> str:
    tail = f'<div><code style="{_MONO}">{escape(more)}</code></div>' if more else ""
    if "\n" in text:  # pseudocode, in columns
        body = f'<b>{escape(label)}</b><pre style="{_MONO}">{escape(text)}</pre>'
    else:
        body = f"<b>{escape(label)}</b> {escape(text)}"
    return f'<div style="{_RULE};margin-top:6px;padding-top:6px">{body}{tail}</div>'


def _card(colour: str, glyph: str, title: str, body: str) -> str:
    frame = f"{_FONT};border-left:4px solid {colour};padding:4px 0 4px 12px;margin:2px 0;max-width:60em;text-align:left"
    chip = f"background:{colour};color:#fff;border-radius:3px;padding:0 6px;margin-right:8px"
    head = f'<div style="font-weight:600"><span style="{chip}">{glyph}</span>{escape(title)}</div>'
    return f'<div class="llmsys-card" style="{frame}">{head}{body}</div>'
