"""One file a command, with a click command of the same name."""
