#!/bin/sh
# Lint, types, and formatting, Python and Go; staticcheck comes from the Go module proxy. The docs are checked by tests/test_docs.py.
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
for module in clients/go clients/compat; do
    scripts/go.sh -C "$module" vet ./...
    scripts/go.sh -C "$module" run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
done
