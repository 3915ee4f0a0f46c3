#!/bin/sh
# Lint, types, and formatting, Python and Go. The docs are checked by tests/test_docs.py.
set -eu
cd "$(dirname "$0")/.."
scripts/venv.sh demo dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
unformatted=$(scripts/go.sh -C clients/go run cmd/gofmt -l . ../compat)
if [ -n "$unformatted" ]; then
    echo "gofmt wants to change: $unformatted" >&2
    exit 1
fi
