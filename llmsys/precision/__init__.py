"""Numbers of few bits: how to store a tensor in them, and what is lost."""
