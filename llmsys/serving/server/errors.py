"""What goes wrong, as OpenAI's clients expect it: a status, and `{"error": {"message", "type", "param", "code"}}`.

    400  the body is no JSON, a parameter is out of its range or not supported; `param` names it
    401  no key, or another one            403  a page of another site asks, by way of somebody's browser
    404  no such path, no such model       405  another method        408  the body does not come
    413  the body is too long              415  it does not say that it is JSON
    429  there is no room: Retry-After says when there may be
    500  this request failed, and no other one did
    503  the server is about to stop, or its engine is broken

A client reads the message, so it says what was expected and what to do. It may quote what the client sent, half a
surrogate pair included, so it is written in ASCII.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

UNIONS = {
    "prompt": "must be a text, a list of texts, a row of token ids or a list of such rows",
    "stop": "must be a text or a list of at most 4 texts, each of 1 to 1000 characters",
    "content": 'must be a text, or a list of parts {"type": "text", "text": "…"}: other types are not supported',
}
"""What may be one of several things, in words: of these pydantic says why it is none of them, one after the other."""


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """What every error looks like."""

    error: ErrorBody


class ApiError(Exception):
    """What a client is to be told. `param` is the parameter that is wrong, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def json(self) -> str:
        return json.dumps(self.body())

    def response(self) -> Response:
        return Response(self.json(), self.status, self.headers, media_type="application/json")


def refused(error: ValueError) -> ApiError:
    """What the engine said of a prompt or a parameter. Its messages begin with the name of what is wrong."""
    message = str(error)
    named = re.match(r"(\w+)(?:: | must )", message)
    too_long = "must have at most" in message or message.startswith("max_tokens must be at most")
    code = "context_length_exceeded" if too_long else None
    return ApiError(400, message, param=named and named.group(1), code=code)


def not_valid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors, with its place: `messages.0.role`."""
    first = errors[0]
    where = [str(each) for each in first["loc"] if each != "body"]
    if first["type"].startswith("json_") or not where:
        return ApiError(400, "the body must be a JSON object, and is none" + _why(first))
    union = next((each for each in where if each in UNIONS), None)
    if union is not None and first["type"] != "missing":
        path = ".".join(where[: where.index(union) + 1])
        return ApiError(400, f"{path} {UNIONS[union]}", param=path)
    path, given = ".".join(where), first.get("input")
    shown = f", got {repr(given)[:60]}" if isinstance(given, str | int | float) else ""
    return ApiError(400, f"{path}: {first['msg']}{shown}", param=path)


def _why(error: Mapping[str, Any]) -> str:
    reason = error.get("ctx", {}).get("error")
    return f": {reason}" if isinstance(reason, str) else ""
