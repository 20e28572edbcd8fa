"""From logits to the next token: a request's sampling parameters, the sampler, and its draw on a GPU."""
