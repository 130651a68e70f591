# ---- what follows is the same in every job: tools/slurm/job.sh -------------------------------------------------------
# Starts node.sh on all nodes (it keeps Ray there, and runs the command on the first), watches them, and requeues the
# job when it was stopped before its time limit. NT_* and COMMAND and STEP are set above.
set -u
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
ALLOCATION=${SLURM_RESTART_COUNT:-0}
export NT_LOGS=$NT_RUN/slurm/$JOB/$ALLOCATION
TO_BE_CONTINUED=138 # 128 + SIGUSR1: nemo-tapo saved and stopped because the limit comes near
mkdir -p "$NT_LOGS/nodes"
touch "$NT_LOGS/begin"

step='' # process id of srun
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
say() { echo "$(date '+%F %T') slurm: $*"; }
node_failed() { compgen -G "$NT_LOGS/nodes/*.failed" >/dev/null; }
end_step() { # the nodes' Ray ends by this file, and leaves its logs
    touch "$NT_LOGS/ended"
    for ((i = 0; i < 30; i++)); do alive "$step" && sleep 1; done
}
fail() {
    say "FAILED: $1"
    end_step
    exit "${2:-1}"
}

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export NT_HEAD=${NODES[0]} NT_NODES="${NODES[*]}"
export NT_ADDRESSES=${NT_ADDRESSES:-} # "node=IPv4 node=IPv4 ...", for nodes whose address of Slurm's is not to be used
say "job $JOB, allocation $((ALLOCATION + 1)) of at most $NT_CHAIN, on $NT_NODES; run folder $NT_RUN"

address() { # of a node, IPv4
    local name
    name=$(scontrol --oneliner show node "$1" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
    getent ahostsv4 "${name:-$1}" | awk '{print $1; exit}'
}

on_usr1() {
    say "asked to stop by Slurm; a checkpoint follows at the end of the step"
    touch "$NT_LOGS/stop" # node.sh tells nemo-tapo, and nobody else: srun would send the signal to Ray as well
}
trap on_usr1 USR1

export NT_RAY= # yes: with more than one node
if [ ${#NODES[@]} -gt 1 ]; then
    NT_RAY=yes
    for node in "${NODES[@]}"; do
        [[ " $NT_ADDRESSES " != *" $node="* ]] || continue
        ip=$(address "$node")
        [ -n "$ip" ] || fail "node $node has no IPv4 address."
        NT_ADDRESSES+=" $node=$ip"
    done
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n') # only this job's processes may join its Ray
    export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
fi
# One step for Ray and the driver, so that they share a container on the first node. pyxis makes one for each step, and
# enroot gives it a /tmp of its own, but a driver reaches Ray by sockets in /tmp. A second step could join by
# --container-name; that one, though, stays on every node's disk after the job, and a later job with another image would
# be given it.
srun --overlap --nodes=${#NODES[@]} --ntasks=${#NODES[@]} --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 \
    --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none "${STEP[@]}" \
    bash "$NT_CODE/tools/slurm/node.sh" "${COMMAND[@]}" & # all CPUs of the node: Slurm would give the step one
step=$!

killed_nodes() { # the nodes whose step was gone before the others'; srun waits a minute until it ends those
    local node newest=0 seen
    for node in "${NODES[@]}"; do
        seen=$(stat -c %Y "$NT_LOGS/nodes/$node.started" 2>/dev/null || echo 0)
        [ "$seen" -le "$newest" ] || newest=$seen
    done
    for node in "${NODES[@]}"; do
        seen=$(stat -c %Y "$NT_LOGS/nodes/$node.started" 2>/dev/null || echo "$newest")
        [ $((newest - seen)) -lt 30 ] ||
            echo "node $node: its step was killed: out of memory, or by Slurm or the node itself"
    done
}
why_nodes() { # the nodes that said why, or else the end of what they printed
    if node_failed; then cat "$NT_LOGS"/nodes/*.failed; else tail -n 20 "$NT_LOGS"/nodes/*.log 2>/dev/null; fi
}

while alive "$step" && [ ! -e "$NT_LOGS/code" ]; do
    if node_failed; then
        [ ! -e "$NT_LOGS/running" ] || for ((i = 0; i < 30; i++)); do
            [ -e "$NT_LOGS/code" ] || sleep 1 # the driver may know more, as which actor was lost
        done
        fail "$(why_nodes)"
    fi
    if [ ! -e "$NT_LOGS/nodes/$NT_HEAD.started" ] && [ $SECONDS -gt "$NT_START_SECONDS" ]; then
        fail "node $NT_HEAD did not start the run within $NT_START_SECONDS seconds."
    fi
    sleep 2 & wait $!
done
if [ ! -e "$NT_LOGS/code" ]; then
    wait "$step"
    code=$?
    killed=$(killed_nodes)
    [ -z "$killed" ] || fail "$killed"
    fail "srun ended with exit code $code before the run did; the lines above say why, or these: $(why_nodes)"
fi
code=$(cat "$NT_LOGS/code")
killed=$(killed_nodes) # srun may have ended the driver for them
end_step

saved() { # whether this allocation left anything that the next one goes on from
    {
        find "$NT_CHECKPOINTS" -type f -newer "$NT_LOGS/begin" -print -quit 2>/dev/null
        find "$NT_RUN" -path "$NT_RUN/slurm" -prune -o -type f -newer "$NT_LOGS/begin" \
            \( -path '*/checkpoints/*' -o -path '*/hf/*' -o -name data.jsonl -o -name evaluation.json \) -print -quit
    } | grep -q .
}

[ $code -ne 0 ] || { say "done"; exit 0; }
if [ $code -ne $TO_BE_CONTINUED ]; then
    if node_failed; then why_nodes; fi
    [ -z "$killed" ] || say "$killed"
    fail "nemo-tapo ended with exit code $code; the lines above say why." $code
fi
saved && touch "$NT_LOGS/saved"
if [ ! -e "$NT_LOGS/saved" ] && [ "$ALLOCATION" -gt 0 ] && [ ! -e "$NT_RUN/slurm/$JOB/$((ALLOCATION - 1))/saved" ]; then
    fail "two allocations in a row saved nothing: raise --time, or --signal-minutes above the length of a step." $code
fi
if [ $((ALLOCATION + 1)) -ge "$NT_CHAIN" ]; then
    say "stopped after $NT_CHAIN allocations (--chain); submit the same command again to go on"
    exit $code
fi
say "requeued: it goes on from the last checkpoint"
scontrol requeue "$SLURM_JOB_ID" || fail "scontrol requeue was refused; submit the same command again to go on." $code
sleep 60 # until Slurm ends this allocation
