"""Text to token ids and back: the tokenizer with its special tokens, the chat template, text that arrives in pieces,
and what a caller may give as a prompt."""
