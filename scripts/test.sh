#!/bin/sh
# Sets itself up, then runs every test, Python and Go; two cores take 15 to 25 minutes:
#     scripts/test.sh
#     scripts/test.sh --long               draws many more cases, and sets a copy of the repository
#                                          up without what pip and Go have in their caches
#     scripts/test.sh tests/web -k stream  these Python tests alone: the arguments are pytest's
# What runs beside the rest is shown when it has ended. The inner loop is .venv/bin/python -m pytest.
set -eu
cd "$(dirname "$0")/.."
scripts/venv.sh demo dev
whole=yes
for argument; do
    [ "$argument" = --long ] || whole=
done
failed=
beside=
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap '[ -z "$beside" ] || kill "$beside"; exit 130' INT TERM

# After their name: the options of pytest.
python_tests() {
    echo "== Python: $1"
    shift
    code=0
    .venv/bin/python -m pytest -q "$@" || code=$?
    [ "$code" -ne 5 ] || [ -n "$whole" ] || code=0 # none of those that were asked for is here
    return "$code"
}

go_tests() {
    echo "== Go"
    race=
    if command -v cc >/dev/null 2>&1; then race=-race; fi
    # More of them at a time than there are CPUs: they wait for servers.
    scripts/go.sh -C clients/go vet ./... &&
        scripts/go.sh -C clients/go test $race -count=1 -parallel 8 ./...
}

# Begins a part beside what follows. After its name: the command.
begin() {
    name=$1
    shift
    "$@" >"$logs/$name" 2>&1 &
    beside=$!
}

# Waits for the part that was begun, and shows what it printed.
finish() {
    wait "$beside" || failed="$failed $name"
    beside=
    cat "$logs/$name"
}

[ -z "$whole" ] || begin go go_tests
python_tests "the fast ones" -n 2 --dist worksteal "$@" || failed="$failed fast"
python_tests "servers, which wait more than they compute" \
    -m server -n 4 --dist worksteal "$@" || failed="$failed servers"
[ -z "$whole" ] || finish

begin copy python_tests "a fresh copy of the repository" -m fresh_copy "$@"
python_tests "models that are compiled, and real weights" \
    -m "(slow or real_model) and not server and not fresh_copy" \
    -n 2 --dist loadfile --no-loadscope-reorder "$@" || failed="$failed models"
finish

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
