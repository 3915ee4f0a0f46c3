"""HTTP connections in gunicorn's worker: sockets, request heads, threads."""
