"""The pictures of a notebook, and what each says to a reader who cannot see it.

A picture is an image or an SVG, in a Markdown cell or in an output. Its alt text is the image's `alt`, the SVG's
`aria-label` or `<title>`; a figure that an output holds as a bare PNG says it in the output's metadata.
"""

import re
from collections.abc import Iterator


def pictures(cell: dict) -> Iterator[tuple[str, str]]:
    """The pictures in a cell's text or outputs, each as (what it is, its alt text, which may be empty)."""
    if cell["cell_type"] == "markdown":
        text = re.sub(r"(`+).*?\1", " ", cell["source"], flags=re.DOTALL)
        yield from (("an image", alt) for alt in re.findall(r"!\[(.*?)\]\(", text, re.DOTALL))
        yield from pictures_in(text)
        return
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/html" in data or "image/svg+xml" in data:  # of several forms, pages show these
            yield from pictures_in(data.get("text/html", "") + data.get("image/svg+xml", ""))
        else:
            for mime in ("image/png", "image/jpeg"):
                if mime in data:
                    yield "a figure", output.get("metadata", {}).get(mime, {}).get("alt", "")


def pictures_in(html: str) -> Iterator[tuple[str, str]]:
    """The images and SVGs in a piece of HTML, each as (what it is, its alt text, which may be empty)."""
    for attributes in re.findall(r"<img\b([^>]*)>", html):
        yield "an image", _attribute(attributes, "alt")
    for attributes, start in re.findall(r"<svg\b([^>]*)>(.{0,400})", html, re.DOTALL):
        title = re.match(r"\s*<title[^>]*>(.*?)</title>", start, re.DOTALL)
        hidden = "decorative" if _attribute(attributes, "aria-hidden") == "true" else ""
        yield "an SVG", _attribute(attributes, "aria-label") or (title[1] if title else "") or hidden


def _attribute(attributes: str, name: str) -> str:
    match = re.search(rf"\b{name}\s*=\s*(\"([^\"]*)\"|'([^']*)')", attributes)
    return (match[2] or match[3] or "") if match else ""
