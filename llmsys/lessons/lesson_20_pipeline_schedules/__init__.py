"""Lesson 20: its checks, and the mistakes that they know by name."""
