"""The application: which path is answered by whom.

    POST /v1/completions         POST /v1/chat/completions        as OpenAI's, streamed or whole
    GET  /v1/models              GET  /v1/models/{name}           the one that is served
    GET  /health                 200 while requests are taken, else 503
    GET  /metrics                for Prometheus
    GET  /engine                 how it does at this moment, as JSON
    GET  /                       the page, which shows that
    GET  /openapi.json           all this, for programs

    app = create_app(Engine(load_model()), name="SmolLM2-135M-Instruct")

It is an ordinary ASGI application, to be run by any server of these, in one process: the engine is in it.
"""

import secrets
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llmsys.serving.engine import Engine
from llmsys.serving.server import measured, replies
from llmsys.serving.server.errors import ApiError, ErrorReply, not_valid
from llmsys.serving.server.gate import Gate
from llmsys.serving.server.limits import Limits
from llmsys.serving.server.page import add_page
from llmsys.serving.server.protocol import ChatRequest, CompletionRequest
from llmsys.serving.server.service import Service
from llmsys.serving.server.stream import Answering

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "What was asked cannot be done, or not now"},
    "5XX": {"model": ErrorReply, "description": "It failed"},
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM = {"text/event-stream": {"itemSchema": EVENT}}


def create_app(
    engine: Engine,
    *,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The application that serves an engine; nobody else may use the engine meanwhile.

    Parameters
    ----------
    name
        The model's.
    limits
        None for `Limits()`, with the engine's own `max_sequences`.
    api_key, hosts
        Who is let in: see `llmsys.serving.server.gate`.

    ValueError where the model has no tokenizer, or the key is empty.
    """
    if engine.model.tokenizer is None:
        raise ValueError("engine must have a model with a tokenizer to be served: this one knows token ids alone")
    if api_key is not None and not api_key.strip():
        raise ValueError("api_key must not be empty: leave it out to let anybody in")
    limits = Limits(running=engine.scheduler.max_sequences) if limits is None else limits
    service = Service(engine, name, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.open()
        yield
        await service.close()

    app = FastAPI(title="llmsys", lifespan=lifespan, docs_url=None, redoc_url=None)  # whose files come from elsewhere
    app.state.service = service
    app.add_middleware(Gate, service=service, api_key=api_key, hosts=hosts)
    _add_errors(app)
    _add_answers(app, service)
    _add_state(app, service)
    add_page(app)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    tokenizer = service.engine.model.tokenizer
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]

    def continued(prompt: str | list[int]) -> list[int]:
        return start + tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    @app.post(
        "/v1/completions",
        response_model=replies.Completion,
        responses=ERRORS | {200: {"content": STREAM, "description": "The answers"}},
    )
    async def completions(body: CompletionRequest) -> Response:
        """Continues a prompt, as it is."""
        body.check(service.name)
        reply = replies.CompletionReply(f"cmpl-{secrets.token_hex(12)}", service.name, service.text)
        return answering(body, reply, [partial(continued, prompt) for prompt in body.prompts])

    @app.post(
        "/v1/chat/completions",
        response_model=replies.ChatCompletion,
        responses=ERRORS | {200: {"content": STREAM, "description": "The answers"}},
    )
    async def chat_completions(body: ChatRequest) -> Response:
        """Continues a conversation."""
        body.check(service.name)
        if tokenizer.chat_template is None:
            what = "this model has no chat template, so it knows no conversations: ask for a completion"
            raise ApiError(400, what, param="messages")
        reply = replies.ChatReply(f"chatcmpl-{secrets.token_hex(12)}", service.name, service.text)
        return answering(body, reply, [partial(tokenizer.chat, body.conversation)])

    def answering(body: CompletionRequest | ChatRequest, reply: replies.Reply, prompts: list) -> Answering:
        stream, include_usage = bool(body.stream), body.include_usage
        return Answering(service, reply, prompts, body.params(), stream=stream, include_usage=include_usage)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=replies.ModelList, responses=ERRORS)
    async def models() -> dict[str, Any]:
        return replies.model_list(service.name, service.since)

    @app.get("/v1/models/{name:path}", response_model=replies.Model, responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"there is no model {name!r} here: {service.name!r} is served", code="model_not_found")
        return replies.model(service.name, service.since)

    @app.get("/health", responses={503: {"description": "No request is taken"}})
    async def health() -> Response:
        ok = service.state == "ok"
        return Response(replies.as_json({"status": service.state}), 200 if ok else 503, media_type="application/json")

    @app.get("/metrics", response_class=Response, responses=ERRORS | {200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(service.measured.exposition(), headers={"Content-Type": measured.CONTENT_TYPE})

    @app.get("/engine", responses=ERRORS)
    async def engine() -> dict[str, Any]:
        """How the engine does, at this moment."""
        return service.measured.snapshot() | {"state": service.state}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def of_the_body(request: Request, error: RequestValidationError) -> Response:
        return not_valid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def of_the_path(request: Request, error: HTTPException) -> Response:
        what = {
            400: "the body must be JSON, in UTF-8, without numbers of thousands of digits or brackets that deep",
            404: "there is no such path here",
            405: "this path takes another method",
        }
        message = what.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def of_nobody(request: Request, error: Exception) -> Response:
        return ApiError(500, "this request failed, as the server's log says").response()
