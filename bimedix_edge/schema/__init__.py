"""Turns a JSON schema into a grammar that constrains answers."""
