"""The machine: which tier it is, what it can do at best, and the instruments that watch code run on it."""
