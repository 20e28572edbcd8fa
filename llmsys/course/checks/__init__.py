"""What each exercise is checked for: one module a lesson, `lesson_02`, imported when one of its checks is wanted.

`llmsys.course.checking` says how a check is written.
"""
