#!/usr/bin/env bash
# ssh: one training on hosts that share a file system, with this folder under the same path.
#   HOSTS="alpha beta" RANKS=8 cluster/ssh.sh emore_r100 --data.path /data/faces_emore
# RANKS per host: its GPUs, or any number with --device cpu. OUTPUT: the folder of the run.
# Ctrl-C or SIGTERM reaches all ranks, which save first; the same command continues the run.
# TORCHRUN, WAIT_S, RESTARTS, SAVE_S and PORT are those of host.sh.
set -euo pipefail
read -ra hosts <<<"${HOSTS:?name the hosts: HOSTS=\"alpha beta\"}"
ranks=${RANKS:?say how many ranks a host has: RANKS=8}
output=${OUTPUT:-runs/ssh}
id=facescale-$HOSTNAME-$$
here=$(cd "$(dirname "$0")" && pwd)
# ssh must not drop a silent host before torchrun does.
patience=(-o ServerAliveInterval=10 -o ServerAliveCountMax=$((${WAIT_S:-600} / 10 + 1)))

# shellcheck disable=SC2317  # the trap calls it
stop() {  # only torchrun's own command has the id; [r] keeps pkill from matching its own shell
  for host in "${hosts[@]}"; do
    ssh -o ConnectTimeout=10 "$host" "pkill -TERM -f '[r]dzv-id=$id'" || true
  done
  wait
}
trap stop INT TERM HUP

pids=()
for number in "${!hosts[@]}"; do
  settings=(NUMBER="$number" NUM_HOSTS="${#hosts[@]}" HOST="${hosts[number]}" FIRST="${hosts[0]}"
    ID="$id" RANKS="$ranks")
  for name in TORCHRUN WAIT_S RESTARTS SAVE_S PORT; do
    [ -z "${!name:-}" ] || settings+=("$name=${!name}")
  done
  command=(env "${settings[@]}" "$here/host.sh" --output "$output" "$@")
  # shellcheck disable=SC2029  # expanded on this host, as intended
  ssh "${patience[@]}" "${hosts[number]}" \
    "cd $(printf %q "$PWD") && exec $(printf '%q ' "${command[@]}")" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
