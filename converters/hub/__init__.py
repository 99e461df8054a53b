"""Published checkpoints: where they are, and how they are fetched."""
