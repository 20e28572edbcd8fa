"""Plausible wrong answers: one module a lesson, `lesson_02`; those that are Triton kernels in `lesson_02_kernels`.

`llmsys.course.diagnosis` says what they are for.
"""
