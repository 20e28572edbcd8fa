"""Models as files: GGUF and Hugging Face directories, read with every mistake named, and directories written.

`weights.load_model` is the entrance and `save.save_model` the exit; `gguf` and `huggingface` say what a file holds,
and `settings` reads their settings without believing them.
"""
