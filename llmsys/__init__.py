"""LLM systems, from naive attention up: the library that the course builds, one stage a lesson.

`llmsys.attention` holds the attention stages, `llmsys.models` a real model that runs on any of them, `llmsys.hardware`
what they run on and the instruments that watch them, `llmsys.course` the lessons' machinery. Importing `llmsys`
itself changes nothing and imports nothing.
"""

__version__ = "0.1.0"
