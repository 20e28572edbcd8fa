"""How long prompts and outputs are in real services, and requests that are drawn alike.

    draw_lengths("azure-code", 3, seed=0)       [RequestLength(prompt=…, output=…), …]

The tables are quantiles of published traces; the traces themselves are not part of the project.

    azure-code, azure-conversation  One hour each of two services, 2023-11-16: 8,819 and 19,366 requests, in
                                    data/AzureLLMInferenceTrace_code.csv and _conv.csv of the repository
                                    github.com/Azure/AzurePublicDataset. CC BY 4.0. Patel et al., "Splitwise: Efficient
                                    generative LLM inference using phase splitting", ISCA 2024.
    mooncake-conversation           12,031 requests: the conversation trace in FAST25-release/traces of the repository
                                    github.com/kvcache-ai/Mooncake. Apache-2.0. Qin et al., "Mooncake", FAST 2025.

**What is drawn** is the inverse of the distribution: a quantile's rank is uniform, and between two ranks of the table
the length grows by equal factors and not by equal steps, for the tails are long. The means of what is drawn are within
6% of the traces', but for the outputs of azure-code, where they are 17% above: of that trace's last percent, from 252
to 1,899 tokens, a table of quantiles says nothing more. Prompt and output are drawn independently, which the traces
nearly are: the correlation of their ranks is −0.02, 0.07 and 0.07.
"""

import math
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

RANKS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
"""Of the quantiles, in percent."""


@dataclass(frozen=True)
class Lengths:
    """A trace's lengths in tokens: the quantiles at RANKS (of the smallest length that so many percent do not exceed),
    and the means."""

    requests: int
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    mean_prompt: float
    mean_output: float


LENGTHS = {
    "azure-code": Lengths(
        requests=8819,
        prompt=(3, 17, 75, 147, 578, 1469, 2745, 5194, 7315, 7436, 7437),
        output=(6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 1899),
        mean_prompt=2047.8,
        mean_output=27.9,
    ),
    "azure-conversation": Lengths(
        requests=19366,
        prompt=(2, 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 14050),
        output=(7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000),
        mean_prompt=1154.7,
        mean_output=211.1,
    ),
    "mooncake-conversation": Lengths(
        requests=12031,
        prompt=(891, 894, 901, 964, 2306, 6909, 15368, 27367, 39552, 85401, 126195),
        output=(1, 3, 10, 24, 156, 350, 472, 597, 698, 1120, 2000),
        mean_prompt=12035.1,
        mean_output=342.6,
    ),
}


class RequestLength(NamedTuple):
    """Tokens of a request's prompt, and of the answer to it."""

    prompt: int
    output: int


def draw_lengths(trace: str | Lengths, count: int, *, seed: int) -> list[RequestLength]:
    """`count` requests with lengths as in the trace: a name in LENGTHS, or a table.

    A seed draws the same ones on every machine, and a larger count begins with the same ones. ValueError for a name
    that is not there, or a count below 0.
    """
    if isinstance(trace, str):
        if trace not in LENGTHS:
            raise ValueError(f"trace must be one of {', '.join(LENGTHS)}, or a Lengths of your own, got {trace!r}")
        trace = LENGTHS[trace]
    if count < 0:
        raise ValueError(f"count must be at least 0 requests, got {count}")
    uniform = random.Random(seed).random
    return [
        RequestLength(at_rank(trace.prompt, 100 * uniform()), at_rank(trace.output, 100 * uniform()))
        for _ in range(count)
    ]


def at_rank(quantiles: tuple[int, ...], rank: float) -> int:
    """The length that `rank` percent do not exceed, by equal factors between the table's quantiles."""
    if not 0 <= rank <= 100:
        raise ValueError(f"rank must be from 0 to 100 percent, got {rank}")
    right = min(bisect_right(RANKS, rank), len(RANKS) - 1)
    low, high = quantiles[right - 1], quantiles[right]
    share = (rank - RANKS[right - 1]) / (RANKS[right] - RANKS[right - 1])
    return round(low * math.exp(share * math.log(high / low)))
