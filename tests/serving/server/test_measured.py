"""What Prometheus reads, by its own parser: the names, and that the numbers are those of what happened."""

import json

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from prometheus_client.parser import text_string_to_metric_families

from llmsys.cache.host_tier import always
from llmsys.serving import HostCache
from tests.serving.server.running import NAME, serving

PATH = "/v1/completions"


def scrape(running) -> dict[tuple, float]:
    """Values by name and labels."""
    answer = running.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name.startswith("llmsys_") and family.documentation
        for sample in family.samples:
            found[sample.name, *sorted(v for k, v in sample.labels.items() if k != "model")] = sample.value
            assert sample.labels.get("model", NAME) == NAME
    return found


def test_before_anybody_came(model):
    with serving(model) as running:
        found = scrape(running)
        assert found["llmsys_requests_running",] == found["llmsys_steps_total",] == 0
        assert found["llmsys_cache_blocks",] == 399 and found["llmsys_cache_blocks_used",] == 0
        assert found["llmsys_time_to_first_token_seconds_count",] == 0
        state = running.get("/engine").json()
        assert state["ttft_seconds"] is None and state["tpot_seconds"] is None and state["state"] == "ok"


def test_numbers_are_of_what_happened(model):
    with serving(model) as running:
        for prompt, n in (("a" * 30, 1), ("a" * 30, 2), ("b", 1)):
            body = {"prompt": prompt, "n": n, "max_tokens": 9, "ignore_eos": True}
            assert running.post(PATH, body).status_code == 200
        running.post(PATH, b"{")
        running.get("/v1/whatever/you/like")
        found = scrape(running)
        # A prompt is counted once for each of its answers: each is a request of the engine's.
        assert found["llmsys_prompt_tokens_total",] == 30 + 2 * 30 + 1
        assert found["llmsys_output_tokens_total",] == 4 * 9
        assert found["llmsys_answers_total", "length"] == 4
        assert found["llmsys_prefix_hit_tokens_total",] > 20
        assert found["llmsys_http_requests_total", PATH, "200"] == 3
        assert found["llmsys_http_requests_total", PATH, "400"] == 1
        assert found["llmsys_http_requests_total", "404", "other"] == 1, "paths that strangers think of are one"
        for name in ("time_to_first_token", "time_per_output_token", "answer"):
            assert found[f"llmsys_{name}_seconds_count",] == 4 and found[f"llmsys_{name}_seconds_sum",] > 0
        assert found["llmsys_time_to_first_token_seconds_sum",] < found["llmsys_answer_seconds_sum",]
        seconds = sum(value for (name, *_), value in found.items() if name == "llmsys_step_seconds_total")
        assert 0 < seconds < found["llmsys_answer_seconds_sum",] and found["llmsys_steps_total",] >= 27

        state = running.get("/engine").json()
        assert state["steps"] == found["llmsys_steps_total",] and state["output_tokens"] == 36
        for times in (state["ttft_seconds"], state["tpot_seconds"]):
            assert 0 < times["p50"] <= times["p90"]


def test_while_it_runs(model):
    with serving(model, max_sequences=2) as running, running.client() as client:
        running.slow(0.005)
        body = {"prompt": ["a", "b", "c"], "max_tokens": 500, "ignore_eos": True, "stream": True}
        with client.stream("POST", PATH, json=body) as stream:
            lines = (line for line in stream.iter_lines() if line)
            json.loads(next(lines).removeprefix("data: "))
            found = scrape(running)
            assert found["llmsys_requests_running",] == 2 and found["llmsys_requests_waiting",] == 1
            assert found["llmsys_cache_blocks_used",] >= 2
            assert found["llmsys_time_to_first_token_seconds_count",] >= 1, "it is known at the first token"
        running.wait_until_empty()
        assert scrape(running)["llmsys_cache_blocks_used",] == 0


@pytest.mark.parametrize(("values", "expected"), [([], None), ([3.0], (3.0, 3.0)), ([1.0, 2.0, 3.0], (2.0, 2.8))])
def test_quantiles(values, expected):
    from llmsys.serving.server.measured import _quantiles

    found = _quantiles(values)
    assert found is expected if expected is None else (found["p50"], found["p90"]) == pytest.approx(expected)


def test_blocks_that_go_to_main_memory_and_come_back_are_counted(model):
    with serving(model, num_blocks=30, host_cache=HostCache(1 << 20, always)) as running:
        for prompt in ("a" * 80, "b" * 80, "a" * 80):
            assert running.post(PATH, {"prompt": prompt, "max_tokens": 9, "ignore_eos": True}).status_code == 200
        found = scrape(running)
    blocks = found["llmsys_host_returned_blocks_total",]
    assert blocks > 0 and found["llmsys_host_returned_tokens_total",] == 4 * blocks
    assert found["llmsys_prefix_hit_tokens_total",] >= 4 * blocks
    assert found["llmsys_host_stored_blocks_total",] >= blocks
