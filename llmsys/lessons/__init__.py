"""What the lessons are made of: a folder a lesson, named after it.

    lesson_03_tiled_attention/
        checks.py             what each exercise is checked for
        mistakes.py           wrong answers as people write them, each with its name
        kernel_mistakes.py    those that are Triton kernels, which are imported for kernel exercises only

`llmsys.course` holds the machinery and finds these by the lesson's name in the manifest; nothing there knows a lesson.
What several lessons' checks share is in `common`.
"""
