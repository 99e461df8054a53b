"""Image bytes to pixels, and pixels to what the vision encoder takes."""
