"""Small reference arrays, and how they were made."""
