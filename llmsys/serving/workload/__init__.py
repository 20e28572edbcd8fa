"""Workloads: what is asked of a service, drawn or read from a trace, and replayed against one.

The chapter, in the order in which to read it:

    lengths         how long prompts and outputs are in real services
    arrivals        when requests come, how long they are, which prefixes they share
    traces          files of real services' requests
    replay          the same requests against an engine, or a server, in real or in scaled time
    server_client   the server: `llmsys serve`, or another with OpenAI's API, asked over the network
"""

from llmsys.serving.workload.arrivals import BLOCK, Arrival, at_rate, prompt_tokens, shared_share, synthetic
from llmsys.serving.workload.lengths import LENGTHS, RANKS, Lengths, RequestLength, at_rank, draw_lengths
from llmsys.serving.workload.replay import Client, EngineClient, Replayed, replay
from llmsys.serving.workload.server_client import ServerClient, ServerError
from llmsys.serving.workload.traces import TRACES, Trace, fetch_trace, load_trace, read_azure, read_mooncake

__all__ = [
    "BLOCK", "LENGTHS", "RANKS", "TRACES", "Arrival", "Client", "EngineClient", "Lengths", "Replayed", "RequestLength",
    "ServerClient", "ServerError", "Trace", "at_rank", "at_rate", "draw_lengths", "fetch_trace", "load_trace",
    "prompt_tokens", "read_azure", "read_mooncake", "replay", "shared_share", "synthetic",
]  # fmt: skip
