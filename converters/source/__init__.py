"""Bounded readers of a checkpoint that somebody else wrote."""
