"""The server's parent process: HTTP, keys, limits and the page; it holds no engine."""
