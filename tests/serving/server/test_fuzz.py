"""Bodies from a fuzzer that reads the server's own OpenAPI document: whatever comes, the answer is in it."""

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("fastapi", reason="the serving extra is not installed")
pytest.importorskip("schemathesis")

import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.server.running import NAME
from tests.support.size import sized

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = sized(short=25, full=500)
POSTS = {
    "/v1/completions": {"prompt": "a", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3},
}
"""Where to post what, and a body that is surely answered: of a few drawn ones every one may ask for what is refused."""


def tame(body: dict) -> None:
    """What the document cannot know: the model's name, how many answers are allowed, how large a vocabulary is. And an
    answer is short, for it is not what is tested."""
    body |= {"model": NAME, "n": 1 + len(str(body.get("n"))) % 3, "max_tokens": 3}
    body.pop("max_completion_tokens", None)
    body.pop("stop_token_ids", None)


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path", POSTS)
def test_whatever_comes_the_answer_is_in_the_document(served, path, mode):
    """Bodies that follow the document, and such as do not."""
    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path]["POST"]
    statuses = set()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def goes_well(case):
        if mode is GenerationMode.POSITIVE:
            tame(case.body)
        elif isinstance(case.body, dict) and isinstance(case.body.get("max_tokens", 3), int):
            case.body["max_tokens"] = 3
        answered(case)

    def answered(case):
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    goes_well()
    if mode is GenerationMode.POSITIVE:
        answered(operation.Case(body=POSTS[path], media_type="application/json"))
    assert statuses <= {200, 400, 404, 405, 415}
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses


def test_the_document_says_what_is_there(served):
    found = served.get("/openapi.json").json()
    posts = {path for path, methods in found["paths"].items() if "post" in methods}
    assert posts == set(POSTS)
    for path in posts:
        answers = found["paths"][path]["post"]["responses"]
        assert set(answers) == {"200", "4XX", "5XX"}
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
