"""The rules of `llmsys.course.authoring.lint` about what the reader reads: sections and their order, pictures,
questions, equations, numbers, outputs.
"""

import re

from nbformat import NotebookNode

from llmsys.course import manifest
from llmsys.course.authoring.alt_texts import pictures
from llmsys.course.authoring.exercise_rules import Complaints
from llmsys.course.authoring.numbers_in_prose import claims, compared_text, is_cited, is_shown, prose
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import ROLES, role

ORDER = "prediction, exercises, widget, measurement, engine, production, questions"
PRODUCTION = r"^#{1,6} .*\bproduction\b"  # the heading of what production does differently
NEXT = re.compile(r"^\*\*Next:\*\*(.*)", re.MULTILINE | re.DOTALL)  # the last words of a lesson
NOT_BUILT = "not built yet"
ELSEWHERE = re.compile(r"(?<![\w.:])(?:/[\w.-]+){2,}|\b0x[0-9a-f]{6,}\b")  # a path or an address, in an output


def sections_are_in_order(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """The sections come in the order that `ORDER` names; where the questions are, another rule sees to."""
    roles = [role(cell) for cell in notebook.cells]
    last = {each: len(roles) - 1 - roles[::-1].index(each) for each in ROLES if each in roles}
    first = {each: roles.index(each) for each in ROLES if each in roles}
    if "setup" in first and any(cell.cell_type == "code" for cell in notebook.cells[: first["setup"]]):
        yield notebook.cells[first["setup"]].id, "code runs before the setup cell", "move the setup cell up"
    production = _position(notebook, PRODUCTION)
    landmarks = [
        ("the first prediction", (first["predict"], 0) if "predict" in first else None),
        ("the first exercise", (first["exercise"], 0) if "exercise" in first else None),
        ("the widget", (last["widget"], 0) if "widget" in last else None),
        ("the last measurement", (last["measure"], 0) if "measure" in last else None),
        ("the learner's code in the engine", (last["engine"], 0) if "engine" in last else None),
        ("what production does differently", production),
    ]
    if production is None:
        yield "(none)", "no section says what production does differently", 'give one a heading with "production" in it'
    there = [(name, position) for name, position in landmarks if position is not None]
    for (before, one), (after, other) in zip(there, there[1:], strict=False):
        if one >= other:
            yield notebook.cells[one[0]].id, f"{before} comes after {after}", f"move it up: {ORDER}"


def opens_with_a_picture(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """What you will build is shown, before anything is asked."""
    for cell in notebook.cells:
        if role(cell) in ("predict", "exercise"):
            yield cell.id, "nothing is shown before this cell", "open with a picture of what is built"
            return
        if any(pictures(cell)):
            return


def pictures_have_alt_text(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """Every image and figure says in words what it shows."""
    for cell in notebook.cells:
        for what, alt in pictures(cell):
            if not alt.strip():
                yield cell.id, f"{what} has no alt text", "say in words what it shows"


def comments_begin_no_line(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """No text follows a comment that begins a line: from there to the next empty line, Markdown takes all for HTML."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for comment in re.finditer(r"^ {0,3}<!--.*?-->[ \t]*\S", cell.source, re.MULTILINE | re.DOTALL):
                yield cell.id, f"{comment.group()[:40]!r} begins a line, and hides Markdown", "let it end one"


def three_questions_with_folded_answers(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """After what production does, three questions, each a <details> whose <summary> asks; earlier ones do not count."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.split(PRODUCTION, text, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)[-1]
    folded = re.findall(r"<details[^>]*>(.*?)</details>", text, re.DOTALL)
    if len(folded) != 3:
        yield "(end)", f"it has {len(folded)} folded answers", "ask three questions, each in a <details>"
    for answer in folded:
        question = re.match(r"\s*<summary>(.+?)</summary>(.*)", answer, re.DOTALL)
        if question is None or not question[2].strip():
            yield "(end)", "a folded answer without a question, or without an answer", "<details><summary>…</summary>…"


def ends_with_the_next_lesson(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """The last cell says what comes next: the next lesson of the manifest; or, where that is planned, or there is none
    after this one, that a lesson it names is not built yet."""
    end = notebook.cells[-1]
    said = NEXT.search(end.source) if end.cell_type == "markdown" else None
    words = " ".join(said[1].split()) if said else ""
    named = re.findall(r"\blesson (\d\d)\b", words, re.IGNORECASE)
    following = next((each for each in manifest.lessons() if each.number > lesson.number), None)
    if following is not None and any(lesson.number < each.number < following.number for each in manifest.planned()):
        following = None  # lessons are not built in their order
    if following is not None:
        if named[:1] != [following.number] or NOT_BUILT in words:
            remedy = f'end it in "**Next:** lesson {following.number}, …"'
            yield end.id, f"its end does not send the reader on to lesson {following.number}, {following.title}", remedy
    elif named and NOT_BUILT not in words:
        yield end.id, f"its end sends the reader to lesson {named[0]}, which there is not", f'say "{NOT_BUILT}"'


def equations_resolve(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    r"""A \tag has a number of its own, and a number in the text is some equation's."""
    texts = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}
    tagged = [(id, number) for id, text in texts.items() for number in re.findall(r"\\tag\{(\w+)\}", text)]
    numbers = [number for _, number in tagged]
    for id, number in tagged:
        if numbers.count(number) > 1:
            yield id, f"there are {numbers.count(number)} equations ({number})", "number each once"
    for id, text in texts.items():
        plain = re.sub(r"\$[^$]*\$", " ", prose(text))
        named = re.findall(r"\b[Ee]q(?:uations?|s?\.)\s*\(?(\d+)\)?(?!\)?\s+(?:of|in)\s)", plain)
        bare = re.findall(r"(?<=[a-z,;:]\s)\((\d{1,2})\)", plain)
        for number in sorted({*named, *bare} - set(numbers)):
            yield id, f"it refers to equation ({number}), which there is not", rf"number one with \tag{{{number}}}"


def numbers_are_shown_or_cited(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """A number that the prose claims stands in a compared output, or its cell says where it is from."""
    shown = compared_text(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not is_cited(cell.source):
            for claim in dict.fromkeys(claims(cell.source)):
                if not is_shown(claim, shown):
                    remedy = "print it in a cell tagged claim, or cite: <!-- source: … -->"
                    yield cell.id, f"nothing shows {claim}", remedy


def outputs_are_clean(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """No warnings; a static frame of every widget; nothing of one machine in an output that is compared."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                first = output.text.strip().splitlines()[:1]
                yield cell.id, f"it writes to stderr: {' '.join(first)}", "mend what warns"
        if role(cell) == "widget" and not any(set(output.get("data", {})) - {"text/plain"} for output in cell.outputs):
            yield cell.id, "the widget leaves nothing on a web page", "show a static frame of it beside it"
        if foreign := ELSEWHERE.search(compared_text([cell])):
            yield cell.id, f"its compared output depends on the machine: {foreign.group()}", "print something else"


def _position(notebook: NotebookNode, pattern: str) -> tuple[int, int] | None:
    """Where a pattern first matches in the text: (cell, character)."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and (match := re.search(pattern, cell.source, re.MULTILINE | re.IGNORECASE)):
            return index, match.start()
    return None
