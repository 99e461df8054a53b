"""What a conversion lost: references, parity, quality, and the pictures that judge."""
