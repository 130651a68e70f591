#!/usr/bin/env bash
# Runs the tests, fast ones first: pure code, then gloo ranks, then Ray + Megatron + vLLM, then jobs on Slurm. Stops at
# the first kind that fails. Arguments: files or folders instead of all.
#
# Of the unit tests, and of the end-to-end and Slurm tests, TEST_WORKERS (2) run side by side: most of them wait for a
# process. Slurm's come with the end-to-end ones, so that no worker is idle while the other ends its last file.
#
# The contract tests ask NeMo-RL itself. They run where NEMO_RL_SRC names its checkout, in an environment made by
# tools/nemo_rl_env.sh, whose Python NEMO_RL_PYTHON names; otherwise they are left out, and a line says so. Those of its
# real workers (tests/contract/real) start the Python that NEMO_RL_WORKERS_PYTHON names.
set -uo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv} WORKERS=${TEST_WORKERS:-2}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg

pytest() { # exit code 5: nothing collected there, not a failure of a part
    "${TEST_PYTHON:-$VENV/bin/python}" -m pytest -q "$@"
    local code=$?
    [ $code -eq 5 ] && code=0
    return $code
}

contract() { # tests marked nemo_rl in their own environment, the others of the folder in ours
    pytest "$@" -m "not nemo_rl" || return $?
    case $1 in tests/contract/real*) return 0 ;; esac
    if [ -z "${NEMO_RL_SRC:-}" ]; then
        echo "NeMo-RL contract tests: left out; to enable them make an environment with tools/nemo_rl_env.sh and set" \
            "NEMO_RL_SRC=<checkout of NVIDIA-NeMo/RL> NEMO_RL_PYTHON=<environment>/bin/python."
        return 0
    fi
    PYTHONPATH="$PWD/tests/contract/shim:$PWD:$(realpath "$NEMO_RL_SRC")" NO_VCS_VERSION=1 PYTHONWARNINGS=ignore \
        TEST_PYTHON=${NEMO_RL_PYTHON:-$VENV/bin/python} pytest "$@" -m nemo_rl
}

if [ $# -gt 0 ] && [ "$*" != "tests" ]; then
    case $1 in tests/contract*) contract "$@"; exit $? ;; esac
    exec "$VENV/bin/python" -m pytest -q "$@"
fi
for part in tests/unit tests/contract tests/distributed "tests/e2e tests/slurm"; do
    echo "== $part"
    case $part in
        tests/contract) contract "$part" ;;
        tests/unit) pytest "$part" -n "$WORKERS" --dist worksteal ;;
        tests/e2e*) pytest $part -n "$WORKERS" --dist loadfile ;; # a file's tests share a run
        *) pytest "$part" ;;
    esac || exit $?
done
