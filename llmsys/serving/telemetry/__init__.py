"""What an engine did: its events as they happen, and the times and counts that follow from them."""
