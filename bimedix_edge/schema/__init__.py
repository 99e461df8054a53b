"""A JSON schema becomes a grammar that answers are held to."""
