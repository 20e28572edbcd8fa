"""Numbers in prose: which of them claim something, and whether an output or a source stands behind each.

A number with a unit (12 ms, 3.35 TB/s, 40%, 2×) or with decimals (11.09) is a claim. It is covered where it appears,
as it is written, in an output that nbval compares (a check's, or that of a cell tagged `claim`), or where its cell
cites a source: a link, or a comment that the page does not show, `<!-- source: … -->`. Names are not claims: `code`,
section 3.2, Python 3.11, 128×64.
"""

import html
import re
from collections.abc import Iterable, Iterator

from llmsys.course.workspace.notebook import role, tags

UNITS = (
    r"ms|µs|μs|us|ns|s|(?:[KMGT]i?|k)?B/s|[kMGTP]?FLOP/s|[KMGT]iB|[kKMGT]B|tok/s|tokens/s|%|×(?!\s*[\d(]|\s*[A-Za-zα-ω]\b|\w)"
)
CLAIM = re.compile(
    r"(?<![\w.,/^])(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?P<decimals>\.\d+)?)(?![\d]|[.,]\d)"
    rf"(?:[\s\u00a0\u202f]?(?P<unit>{UNITS})(?![\w/]))?"
)
NAME = re.compile(
    r"(?:sections?|§|figures?|tables?|chapter|version|capability|lessons?|Python|PyTorch|torch|Triton|triton|CUDA)\s?$",
    re.IGNORECASE,
)
CITATION = re.compile(r"\]\(https?://|<https?://|<a\s[^>]*href=.https?://|<!--\s*source:\s*\w")


def claims(markdown: str) -> Iterator[str]:
    """The numbers that a Markdown cell claims, each as it is written, unit included."""
    text = prose(markdown)
    for match in CLAIM.finditer(text):
        if (match["decimals"] or match["unit"]) and not NAME.search(text[: match.start()]):
            yield " ".join(match.group().split())


def prose(markdown: str) -> str:
    """What a reader reads: without code, comments, addresses and tags; inline mathematics stays, for it claims too."""
    text = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", " ", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"(`+).*?\1", " ", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)\s]*(\s[^)]*)?\)", "]", text)
    text = re.sub(r"</?[a-zA-Z][^>]*>|<?https?://\S+", " ", text)
    return text


def is_cited(markdown: str) -> bool:
    """Whether the cell names a source."""
    return bool(CITATION.search(markdown))


def compared_text(cells: Iterable[dict]) -> str:
    """All that the outputs which nbval compares say, as text."""
    said = []
    for cell in cells:
        if cell["cell_type"] == "code" and (role(cell) == "check" or "claim" in tags(cell)):
            for output in cell["outputs"]:
                said.append(_joined(output.get("text", "")))
                for mime, data in output.get("data", {}).items():
                    if mime.startswith("text/") or mime == "image/svg+xml":
                        text = _joined(data)
                        said.append(text if mime == "text/plain" else html.unescape(re.sub(r"<[^>]*>", " ", text)))
    return "\n".join(said)


def is_shown(claim: str, text: str) -> bool:
    """Whether the text has that number, with its unit, as it is written. Only the space between them may differ."""
    number, unit = re.fullmatch(r"([\d.,]+)\s*(.*)", claim).groups()
    after = r"(?!\d|[.,]\d)" + (rf"[\s\u00a0\u202f]*{re.escape(unit)}(?![\w/])" if unit else "")
    return re.search(rf"(?<![\d.,]){re.escape(number)}{after}", text) is not None


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
