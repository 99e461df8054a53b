"""Facts about the machine, the model's needs and the user's wishes become a plan."""
