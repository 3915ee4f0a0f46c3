"""`/prompt` and `/echo`: the server's own routes."""
