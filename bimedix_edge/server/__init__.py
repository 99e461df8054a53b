"""An OpenAI-compatible server: the model in a process of its own, and what speaks HTTP in front of it."""
