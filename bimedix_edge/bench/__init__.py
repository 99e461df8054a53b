"""Measurement: what speed this machine reaches, and what it could reach."""
