"""Checkpoints and decoders of any size with random weights."""
