"""Serving: many requests on one model.

`LENGTHS`       how long prompts and outputs are in real services, as quantiles (`workload`)
`draw_lengths`  requests of such lengths
"""

from llmsys.serving.workload import LENGTHS, Lengths, RequestLength, draw_lengths

__all__ = ["LENGTHS", "Lengths", "RequestLength", "draw_lengths"]
