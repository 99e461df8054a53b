"""The border between the server's two processes: messages and their frames."""
