"""Lesson 09: its checks, and the mistakes that they know by name."""
