#!/usr/bin/env bash
# On every node of a job: checks the environment, then keeps Ray until the job ends. What goes wrong is left in
# nodes/<node>.failed, with the node's name.
set -u
me=$SLURMD_NODENAME
deadline=$((SECONDS + NT_START_SECONDS))
export PYTHONPATH=$NT_CODE${PYTHONPATH:+:$PYTHONPATH}
if [ ! -d "$NT_LOGS/nodes" ]; then
    echo "node $me: $NT_LOGS is not there: the run's folder has to be shared by all nodes (and mounted)." >&2
    exit 1
fi
folder=/tmp/nt-$SLURM_JOB_ID # short: sockets' paths below it may have 107 characters

fail() {
    echo "node $me: $*" | tee "$NT_LOGS/nodes/$me.failed" >&2
    exit 1
}
keep_logs() {
    mkdir -p "$NT_LOGS/ray"
    cp -r "$folder/session_latest/logs" "$NT_LOGS/ray/$me" 2>/dev/null
    rm -rf "$folder"
}
free_port() { "$NT_PYTHON" -P -c "import socket; s = socket.socket(); s.bind(('$ip', 0)); print(s.getsockname()[1])"; }

touch "$NT_LOGS/nodes/$me.started"
check=(-c "import ray, nemo_tapo")
[ -z "$NT_CONTAINER" ] || check=("$NT_CODE/tools/check_container.py" --gpus "$NT_GPUS")
found=$(timeout "$NT_START_SECONDS" "$NT_PYTHON" -P "${check[@]}" 2>&1) ||
    fail "its environment is not fit to run: ${found##*$'\n'}"

for pair in $NT_ADDRESSES; do
    [ "${pair%%=*}" != "$me" ] || ip=${pair#*=}
done
ray=(setsid "$NT_PYTHON" -P -m ray.scripts.scripts start) # a session of its own: the job's signals pass it by
# Ports are the system's choice: several jobs may share a node.
ray+=(--block --node-ip-address="$ip" --node-name="$me" --log-style=record --log-color=false)
ray+=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
ray+=(${NT_OBJECT_STORE:+--object-store-memory="$NT_OBJECT_STORE"})
trap : TERM # Ray stays until the run has saved
if [ "$me" = "$NT_HEAD" ]; then
    port=$(free_port) client_port=$(free_port)
    "${ray[@]}" --head --port="$port" --ray-client-server-port="$client_port" --temp-dir="$folder" \
        --include-dashboard=false &
    process=$!
    until (exec 3<>"/dev/tcp/$ip/$port") 2>/dev/null; do
        kill -0 $process 2>/dev/null || fail "Ray's head did not start"
        [ $SECONDS -lt $deadline ] || fail "Ray's head does not answer on $ip:$port"
        sleep 0.5
    done
    echo "$ip:$port" >"$NT_LOGS/address.tmp"
    mv "$NT_LOGS/address.tmp" "$NT_LOGS/address"
else
    until [ -s "$NT_LOGS/address" ]; do
        [ $SECONDS -lt $deadline ] || fail "heard nothing of Ray's head on $NT_HEAD"
        sleep 0.5
    done
    "${ray[@]}" --address="$(cat "$NT_LOGS/address")" &
    process=$!
fi

while kill -0 $process 2>/dev/null && [ ! -e "$NT_LOGS/ended" ]; do
    sleep 1 & wait $!
done
if [ ! -e "$NT_LOGS/ended" ]; then
    wait $process
    code=$?
    keep_logs
    fail "Ray ended with exit code $code; its logs are in $NT_LOGS/ray/$me"
fi
kill $process 2>/dev/null
wait $process
keep_logs
exit 0
