"""The engine: prompts of tokens and images in, events out, on one thread."""
