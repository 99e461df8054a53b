"""An OpenAI-compatible server: one process speaks HTTP, a child of it holds the model."""
