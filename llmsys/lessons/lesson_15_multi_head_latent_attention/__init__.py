"""Lesson 15: its checks, and the mistakes that they know by name."""
