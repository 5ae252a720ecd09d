#!/usr/bin/env bash
# Plain ssh: one training over hosts that share a file system, with this folder in the same place.
#   HOSTS="alpha beta" RANKS=8 cluster/ssh.sh emore_r100 --data.path /data/faces_emore
# RANKS a host: its GPUs, or with --device cpu what you like. OUTPUT: the folder of the run.
# Ctrl-C or SIGTERM reaches all ranks, and they save first; the same command goes on.
# TORCHRUN, WAIT_S, RESTARTS, SAVE_S and PORT are those of host.sh.
set -euo pipefail
read -ra hosts <<<"${HOSTS:?name the hosts: HOSTS=\"alpha beta\"}"
ranks=${RANKS:?say how many ranks a host has: RANKS=8}
output=${OUTPUT:-runs/ssh}
id=facescale-$HOSTNAME-$$
here=$(cd "$(dirname "$0")" && pwd)
# Silent for as long as torchrun waits, a host is not given up.
patience=(-o ServerAliveInterval=10 -o ServerAliveCountMax=$((${WAIT_S:-600} / 10 + 1)))

# shellcheck disable=SC2317  # the trap calls it
stop() {  # the id stands in torchrun's own command alone; [r] keeps pkill from finding its shell
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
  # shellcheck disable=SC2029  # this host's words are meant
  ssh "${patience[@]}" "${hosts[number]}" \
    "cd $(printf %q "$PWD") && exec $(printf '%q ' "${command[@]}")" &
  pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
