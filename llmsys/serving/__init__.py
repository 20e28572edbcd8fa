"""Serving: many requests on one model.

    from llmsys.serving import Engine, SamplingParams
    engine = Engine(load_model())
    engine.generate(["What is 2 + 2?", "Name a colour."], SamplingParams(max_tokens=20))

`Engine`          prompts in, text out, as many at a time as there is room for
`AsyncEngine`     the same in an event loop
`SamplingParams`  how a request wants its tokens chosen, and when it has enough
`Response`        what comes of a prompt: its `Answer`s, which grow by `Update`s
`Scheduler`       before every step, which requests compute how many tokens, in which blocks
`POLICIES`        how a step is filled: static, orca, alternating, stall-free, or a `Policy` of your own
`Request`         a prompt in tokens and how far it has come
`StepPlan`        what the scheduler tells the runner: `Work` for each request
`StepResult`      what it is told: an `Output` for each
`Runner`          a step from its plan to its result
`Execution`       how steps are executed: what makes it fast, each part with a switch
`HostCache`       main memory behind the cache: how much, and what comes back from it
`EventLog`        what happened to requests, written down once
`Metrics`         how long requests waited for what, and what each step did
`LENGTHS`         how long prompts and outputs are in real services, as quantiles (`workload`)
`draw_lengths`    requests of such lengths

Four chapters are imported by their own names: `serving.workload`, what is asked of a service, drawn or read from
traces, and replayed; `serving.goodput`, who was served as they want to be; `serving.simulator`, the same scheduler on a
device that is a model of its time; `serving.disaggregate`, prompts and answers by engines of their own.
"""

from pathlib import Path

from llmsys.serving.async_engine import AsyncEngine
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.host_cache import HostCache
from llmsys.serving.plan import Output, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.policies import POLICIES, Policy, Turn, as_policy
from llmsys.serving.request import Request, Status
from llmsys.serving.responses.response import Answer, Response, Update
from llmsys.serving.runner import Runner
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import EventLog
from llmsys.serving.telemetry.metrics import Metrics, RequestMetrics, StepMetrics
from llmsys.serving.workload import LENGTHS, Lengths, RequestLength, draw_lengths

__path__.append(str(Path(__file__).parents[1] / "moved" / "serving"))  # names from before: llmsys.moved
__all__ = [
    "LENGTHS",
    "POLICIES",
    "Answer",
    "AsyncEngine",
    "Engine",
    "EventLog",
    "Execution",
    "HostCache",
    "Lengths",
    "Metrics",
    "Output",
    "Policy",
    "Request",
    "RequestLength",
    "RequestMetrics",
    "Response",
    "Runner",
    "SamplingParams",
    "Scheduler",
    "Status",
    "StepMetrics",
    "StepPlan",
    "StepResult",
    "TokenLogprobs",
    "Turn",
    "Update",
    "Work",
    "as_policy",
    "draw_lengths",
]
