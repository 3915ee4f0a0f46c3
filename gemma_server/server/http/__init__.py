"""HTTP's connections as gunicorn's worker has them: sockets, request heads, threads."""
