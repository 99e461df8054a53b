"""Makes a plan from the machine, the model's sizes and the user's request."""
