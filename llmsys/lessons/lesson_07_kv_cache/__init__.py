"""Lesson 07: its checks, and the mistakes that they know by name."""
