"""The page at `/`: a chat, and the engine at work. Three files, which need nothing from anywhere else.

The browser is told so, too: scripts, styles and requests of this server alone, no frame around it. What a model says is
shown as text and never as HTML, so it cannot be a program.
"""

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an update, the new one
}


def add_page(app: FastAPI) -> None:
    """Adds the page's three paths."""
    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _answer((files(__package__) / name).read_bytes(), kind), include_in_schema=False)


def _answer(content: bytes, kind: str):
    async def answer() -> Response:
        return Response(content, headers=HEADERS | {"Content-Type": f"{kind}; charset=utf-8"})

    return answer
