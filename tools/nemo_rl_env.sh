#!/usr/bin/env bash
# Makes the environment of the contract tests: NeMo-RL's dependencies on Python 3.11 with the CPU build of torch
# (2 to 4 minutes, 3 GiB). NeMo-RL itself is not installed: it comes from its checkout, by PYTHONPATH.
#
#   git clone https://github.com/NVIDIA-NeMo/RL nemo-rl && git -C nemo-rl checkout v0.7.0
#   tools/nemo_rl_env.sh .venv-nemo-rl nemo-rl
#   NEMO_RL_SRC=nemo-rl NEMO_RL_PYTHON=.venv-nemo-rl/bin/python tools/test.sh tests/contract
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: tools/nemo_rl_env.sh <folder of the environment> <checkout of NVIDIA-NeMo/RL>" >&2; exit 2; }
VENV=$(realpath -m "$1") SRC=$(realpath -m "$2") PYTHON=${PYTHON:-python3.11}
cd "$(dirname "$0")/.."
TORCH=2.13.0

fail() { printf 'nemo_rl_env: %s\n' "$*" >&2; exit 1; }
[ -f "$SRC/nemo_rl/__init__.py" ] || fail "$SRC is no checkout of NVIDIA-NeMo/RL: nemo_rl/__init__.py is not there."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail \
    "the pinned packages are for Python 3.11, and $PYTHON is $("$PYTHON" -V 2>&1). Name one: PYTHON=python3.11"

"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@" 2> >(grep -v "^WARNING: Location" >&2); }
pip install "pip==26.3"
if ! "$VENV/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null &&
    ! pip install --no-deps "torch==$TORCH+cpu" 2>/dev/null; then # the index has only CUDA builds
    pip install "uv>=0.9,<1"
    "$VENV/bin/uv" pip install -q --no-deps --python "$VENV/bin/python" --torch-backend cpu "torch==$TORCH"
fi
pip install --no-deps -r requirements/nemo_rl.txt

NO_VCS_VERSION=1 HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore PYTHONPATH=tests/contract/shim:.:$SRC \
    "$VENV/bin/python" -c "import nemo_rl.algorithms.grpo, nemo_tapo.losses.policy" ||
    fail "NeMo-RL at $SRC does not import; remove $VENV and run again, or take another checkout (v0.7.0 is tested)."
echo "ready: NEMO_RL_SRC=$SRC NEMO_RL_PYTHON=$VENV/bin/python tools/test.sh tests/contract"
