#!/usr/bin/env bash
# On the first node, started by node.sh: waits for Ray on all nodes, then runs nemo-tapo. A signal goes to nemo-tapo's
# own process alone, for its workers would die of it; it is asked to save, and they have to live until then.
set -u
process='' asked='' heard=''
pass_on() {
    heard=yes
    [ "$asked" != "$1" ] || return # a second one would abort it
    asked=$1
    [ -z "$process" ] || kill -s "$1" "$process" 2>/dev/null
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
touch "$NT_LOGS/driver" || exit 1 # from now on it may be asked to stop

if [ -n "$NT_RAY" ]; then
    "$NT_PYTHON" -P "$NT_CODE/tools/slurm/ray_nodes.py" "$NT_LOGS" "$NT_START_SECONDS" $NT_NODES
    code=$?
    [ -z "$asked" ] || exit $((128 + $(kill -l "$asked")))
    [ $code -eq 0 ] || exit $code
    NEMO_TAPO_RAY_ADDRESS=$(cat "$NT_LOGS/address")
    export NEMO_TAPO_RAY_ADDRESS RAY_ADDRESS=$NEMO_TAPO_RAY_ADDRESS # the second is what NeMo-RL looks at
fi
touch "$NT_LOGS/running"
setsid "$NT_PYTHON" -P -m nemo_tapo.cli "$@" &
process=$!
[ -z "$asked" ] || kill -s "$asked" $process
while :; do
    heard=''
    wait $process
    code=$?
    # `wait` also returns, with more than 128, when a signal came: then it goes on waiting.
    if [ -z "$heard" ] || [ $code -le 128 ]; then exit $code; fi
done
