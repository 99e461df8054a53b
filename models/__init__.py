"""What this project knows about published checkpoints, and the embedded demo model."""
