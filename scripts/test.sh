#!/bin/sh
# Sets itself up, then runs every test, Python and Go.
set -eu
cd "$(dirname "$0")/.."
scripts/venv.sh demo dev
echo "== Python: the fast tests, then those that compile models, start servers, or load real weights"
.venv/bin/python -m pytest -q "$@"
.venv/bin/python -m pytest -q -m "slow or real_model" "$@"
echo "== Go"
cd clients/go
../../scripts/go.sh vet ./...
race=
if command -v cc >/dev/null 2>&1; then race=-race; fi
../../scripts/go.sh test $race -count=1 ./...
