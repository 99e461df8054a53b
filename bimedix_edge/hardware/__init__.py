"""What this machine has: processor, memory, NVIDIA's driver, and advice about them."""
