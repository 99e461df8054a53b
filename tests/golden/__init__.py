"""Small reference arrays, and the code that makes them."""
