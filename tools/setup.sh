#!/usr/bin/env bash
# Sets up ./.venv (or $VENV) with the local stack: CPU torch, vLLM, Megatron-core, Ray, and this package, editable.
# Re-run at will: it does nothing when the environment is already as requirements/local.txt and pyproject.toml say.
#
#   PYTHON=python3.12 VENV=.venv tools/setup.sh       without PYTHON: the first suitable one that is installed
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
TORCH=2.13.0
VERSIONS="3.11 3.12 3.13" # requirements/local.txt was run with each of them

say() { printf '\033[1m%s\033[0m\n' "setup: $*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

is_suitable() {
    "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' $VERSIONS 2>/dev/null
}
find_python() {
    local version
    for version in "" $VERSIONS; do
        if is_suitable "python3${version#3}"; then echo "python3${version#3}"; return; fi
    done
    fail "no Python 3.11, 3.12 or 3.13 is installed. One command brings it, without root: \
curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv python install 3.12"
}

get_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

existing=$(get_version "$VENV/bin/python")
if [ -z "${PYTHON:-}" ]; then # what is there stays, also where another Python was installed since
    if is_suitable "$VENV/bin/python"; then PYTHON=$VENV/bin/python; else PYTHON=$(find_python); fi
fi
is_suitable "$PYTHON" || {
    answer=$("$PYTHON" -V 2>&1 || true)
    fail "the pinned local stack is for Python ${VERSIONS// /, }, and $PYTHON is ${answer%%$'\n'*}. Name one: \
make demo PYTHON=python3.12"
}
[ "${existing:-$(get_version "$PYTHON")}" = "$(get_version "$PYTHON")" ] || fail \
    "$VENV is of Python $existing, and $PYTHON is another: remove $VENV, or name another folder: VENV=.venv-other"
stamp=$({ get_version "$PYTHON"; cat requirements/local.txt requirements/reasoning_gym.txt pyproject.toml setup.py tools/setup.sh; } | sha256sum)
stamp=${stamp%% *}
if [ "$(cat "$VENV/.ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

case $(uname -sm) in
    "Linux x86_64") ;;
    "Linux aarch64") say "every pinned package has a wheel for Linux arm64, but nobody has told of a run there" ;;
    *) fail "vLLM and Megatron-core have no wheels here, this is $(uname -sm). README's table says what works." ;;
esac

say "environment in $VENV (1 to 3 minutes)"
[ -n "$existing" ] || "$PYTHON" -m venv "$VENV"
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
