"""What callers see of their requests: text in pieces that are whole characters, stop strings, updates and answers."""
