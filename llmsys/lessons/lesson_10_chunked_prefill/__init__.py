"""Lesson 10: its checks, and the mistakes that they know by name."""
