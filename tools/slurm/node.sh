#!/usr/bin/env bash
# On every node of a job: checks the environment, then keeps Ray until the job ends (with more than one node). On the
# first node it also runs the driver, in the same container as Ray's head. What goes wrong is left in
# nodes/<node>.failed, with the node's name; the driver's exit code in the file `code`. nodes/<node>.started is touched
# again and again: of a step that was killed it grows old.
set -u
me=$SLURMD_NODENAME
deadline=$((SECONDS + NT_START_SECONDS))
export PYTHONPATH=$NT_CODE${PYTHONPATH:+:$PYTHONPATH}
if [ ! -d "$NT_LOGS/nodes" ]; then
    echo "node $me: $NT_LOGS is not there: the run's folder has to be shared by all nodes (and mounted)." >&2
    exit 1
fi
exec 3>&1 4>&2 >>"$NT_LOGS/nodes/$me.log" 2>&1 # 3 and 4 are the job's log: what the driver prints
folder=/tmp/nt-$SLURM_JOB_ID # short: sockets' paths below it may have 107 characters
ray='' driver='' # process ids

alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
pause() { sleep "$1" & wait $!; } # a signal ends it
fail() {
    echo "node $me: $*" | tee "$NT_LOGS/nodes/$me.failed" >&2
    while alive "$driver"; do pause 1; done # job.sh gives it some time
    [ -z "$driver" ] || end_driver
    exit 1
}
end_driver() {
    wait "$driver"
    echo $? >"$NT_LOGS/code.tmp"
    mv "$NT_LOGS/code.tmp" "$NT_LOGS/code"
    driver=''
}
keep_logs() {
    mkdir -p "$NT_LOGS/ray"
    cp -r "$folder/session_latest/logs" "$NT_LOGS/ray/$me" 2>/dev/null
    rm -rf "$folder"
}

touch "$NT_LOGS/nodes/$me.started"
check=(-c "import ray, nemo_tapo")
[ -z "$NT_CONTAINER" ] || check=("$NT_CODE/tools/check_container.py" --gpus "$NT_GPUS")
if [ -n "$NT_RAY$NT_CONTAINER" ]; then
    found=$(timeout "$NT_START_SECONDS" "$NT_PYTHON" -P "${check[@]}" 2>&1) ||
        fail "its environment is not fit to run: ${found##*$'\n'}"
fi
# Ray and vLLM open a file for each connection; 65535 is what Ray recommends.
most=$(ulimit -Sn)
[ "$most" = unlimited ] || [ "$most" -ge 65535 ] || ulimit -Sn 65535 2>/dev/null || ulimit -Sn "$(ulimit -Hn)"

# Ports below those that the system gives to outgoing connections: Ray looks whether one is free and its worker binds it
# later, and a connection in between would take it. NeMo-RL v0.7.0 and main leave these ranges to Ray; others of it
# (masters, engines, servers) lie between. Job and node choose one, for several jobs may share a machine.
choose_ports() {
    local system start starts=(2000)
    read -r system _ </proc/sys/net/ipv4/ip_local_port_range
    for ((start = 28001; start + 999 < system; start += 1000)); do starts+=("$start"); done
    first_port=${starts[(SLURM_JOB_ID + SLURM_NODEID) % ${#starts[@]}]}
}
free_ports() { # two of the first ten; the other 990 are the workers'
    "$NT_PYTHON" -P - "$ip" "$first_port" <<'END'
import socket, sys
free, held = [], []
for port in range(int(sys.argv[2]), int(sys.argv[2]) + 10):
    held.append(socket.socket())
    try:
        held[-1].bind((sys.argv[1], port))
        free.append(port)
    except OSError:
        pass
print(*free[:2])
END
}
start_ray() {
    local pair ip='' port='' client_port='' command
    for pair in $NT_ADDRESSES; do
        [ "${pair%%=*}" != "$me" ] || ip=${pair#*=}
    done
    choose_ports
    command=(setsid "$NT_PYTHON" -P -m ray.scripts.scripts start) # a session of its own: the job's signals pass it by
    command+=(--block --node-ip-address="$ip" --node-name="$me" --log-style=record --log-color=false)
    command+=(--min-worker-port=$((first_port + 10)) --max-worker-port=$((first_port + 999)))
    command+=(--dashboard-agent-listen-port=0 ${NT_OBJECT_STORE:+--object-store-memory="$NT_OBJECT_STORE"})
    if [ "$me" != "$NT_HEAD" ]; then
        until [ -s "$NT_LOGS/address" ]; do
            [ $SECONDS -lt $deadline ] || fail "heard nothing of Ray's head on $NT_HEAD"
            pause 0.5
        done
        "${command[@]}" --address="$(cat "$NT_LOGS/address")" 3>&- 4>&- &
        ray=$!
        return
    fi
    read -r port client_port < <(free_ports)
    [ -n "$client_port" ] || fail "no two of the ports $first_port to $((first_port + 9)) are free"
    "${command[@]}" --head --port="$port" --ray-client-server-port="$client_port" --temp-dir="$folder" \
        --include-dashboard=false 3>&- 4>&- &
    ray=$!
    until (exec 5<>"/dev/tcp/$ip/$port") 2>/dev/null; do
        alive $ray || fail "Ray's head did not start"
        [ $SECONDS -lt $deadline ] || fail "Ray's head does not answer on $ip:$port"
        pause 0.5
    done
    echo "$ip:$port" >"$NT_LOGS/address.tmp"
    mv "$NT_LOGS/address.tmp" "$NT_LOGS/address"
}

trap 'asked=TERM' TERM # Ray stays until the run has saved
asked='' told='' round=0
[ -z "$NT_RAY" ] || start_ray
if [ "$me" = "$NT_HEAD" ]; then
    bash "$NT_CODE/tools/slurm/driver.sh" "$@" >&3 2>&4 3>&- 4>&- &
    driver=$!
fi
while [ ! -e "$NT_LOGS/ended" ]; do
    ((round++ % 5)) || touch "$NT_LOGS/nodes/$me.started"
    if [ -n "$driver" ] && ! alive "$driver"; then
        end_driver
        touch "$NT_LOGS/ended"
    elif [ -n "$NT_RAY" ] && ! alive "$ray"; then
        wait "$ray"
        code=$?
        keep_logs
        fail "Ray ended with exit code $code; its logs are in $NT_LOGS/ray/$me"
    else
        [ -n "$asked" ] || [ ! -e "$NT_LOGS/stop" ] || asked=USR1 # by job.sh
        if [ "$asked" != "$told" ] && alive "$driver" && [ -e "$NT_LOGS/driver" ]; then
            kill -s "$asked" "$driver"
            told=$asked
        fi
        pause 1
    fi
done
if alive "$driver"; then # job.sh gave the job up: save what can be saved
    kill -s TERM "$driver"
    for ((i = 0; i < 20; i++)); do alive "$driver" && pause 1; done
fi
if [ -n "$NT_RAY" ]; then
    kill "$ray" 2>/dev/null
    wait "$ray"
    keep_logs
fi
exit 0
