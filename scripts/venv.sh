#!/bin/sh
# Makes .venv at the root of the repository and installs the named extras there, each once:
#     scripts/venv.sh demo dev
# Touches no network when pyproject.toml and constraints.txt have not changed since.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv

fail() {
    echo "gemma-server: $*" >&2
    exit 1
}

find_python() {
    for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "needs Python 3.11 or newer; install it, or set PYTHON to it"
}

# A moved copy needs a new environment: paths are written into it.
inputs="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $root"
if [ -e "$venv" ] && ! { "$venv/bin/python" -c 'import pip' 2>/dev/null &&
    [ "$(cat "$venv/.root" 2>/dev/null || echo "$root")" = "$root" ]; }; then
    echo "gemma-server: .venv was made elsewhere, or its Python is gone; making it anew" >&2
    rm -rf "$venv"
fi
missing=
for extra in "$@"; do
    stamp=$venv/.installed-$extra
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$inputs" ]; then
        missing=${missing:+$missing,}$extra
    fi
done
[ -n "$missing" ] || exit 0

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "gemma-server: making .venv with $("$python" --version)" >&2
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
    }
fi
echo "$root" >"$venv/.root"
echo "gemma-server: installing [$missing] into .venv, once: some 500 MB to download (more with" \
    "CUDA), 1.1 GB on disk; this takes a minute or more" >&2
quiet=$([ -t 2 ] || echo --quiet)
# shellcheck disable=SC2086  # $quiet is one word or none
"$venv/bin/python" -m pip install $quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root[$missing]" >&2 ||
    fail "the installation failed (see above); run the same command again to go on with it"
# Needs a C++ compiler and nothing else; without one the server works, several times more slowly.
"$venv/bin/python" -m gemma_server.native.library >&2 || true
for extra in "$@"; do
    echo "$inputs" >"$venv/.installed-$extra"
done
