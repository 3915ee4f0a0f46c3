#!/bin/sh
# Starts the server, and on the first run installs it: ./run-gemma-server.sh [serve flags]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if nvidia-smi >/dev/null 2>&1; then
    "$root/scripts/venv.sh" demo cuda
else
    "$root/scripts/venv.sh" demo
fi
exec "$root/.venv/bin/gemma-server" serve "$@"
