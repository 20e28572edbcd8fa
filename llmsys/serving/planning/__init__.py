"""Planning a service: how many engines of which kind, and of how many GPUs each, give most goodput per GPU.

    engines = {n: engine_of(MISTRAL_7B, n, times=recorded_times(), …) for n in (1, 2, 4)}
    plan(workload, Limits(ttft=0.5, tpot=0.01), gpus=8, engines=engines, transfer=Transfer(…))
    [Planned(…), …]          the first one has most goodput per GPU

    engines     an engine of several GPUs, or of another model, by a model from one that was measured
    plan        the search
"""

from llmsys.serving.planning.engines import EngineOf, blocks_left, engine_of, rescaled
from llmsys.serving.planning.plan import Candidate, Planned, candidates, plan

__all__ = ["Candidate", "EngineOf", "Planned", "blocks_left", "candidates", "engine_of", "plan", "rescaled"]
