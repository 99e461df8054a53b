"""The server's child process: the one that holds the model."""
