#!/usr/bin/env bash
# The part of one host in a training on several hosts; ssh.sh and slurm.sh start it on each of them.
#   NUMBER=0 NUM_HOSTS=2 HOST=alpha FIRST=alpha ID=any RANKS=8 cluster/host.sh small --output DIR
# TORCHRUN is the command of torchrun there: "env OMP_NUM_THREADS=4 /opt/venv/bin/torchrun".
# If a host cannot be reached, the ranks end after --timeout_s and torchrun waits WAIT_S seconds for it.
# Then the run continues from its last checkpoint, or torchrun ends (docs/parallelism.md).
set -euo pipefail
read -ra torchrun <<<"${TORCHRUN:-torchrun}"
wait_s=${WAIT_S:-600}

# SAVE_S seconds to save after a signal. Older versions of torchrun do not have the option and kill the
# ranks after 30 s.
saving=()
if [[ $("${torchrun[@]}" --help) == *--shutdown-timeout* ]]; then
  saving=(--shutdown-timeout="${SAVE_S:-110}")
fi

# is_host and local-addr: by default torchrun looks for FIRST among the local host names, and sends its
# own name to the other hosts; neither need be a name by which the hosts reach each other.
# read_timeout: torchrun polls FIRST, and gives up if an answer takes longer.
exec "${torchrun[@]}" --nnodes="$NUM_HOSTS" --nproc-per-node="$RANKS" --local-addr="$HOST" \
  --max-restarts="${RESTARTS:-3}" "${saving[@]}" \
  --rdzv-backend=c10d --rdzv-id="$ID" --rdzv-endpoint="$FIRST:${PORT:-29400}" \
  --rdzv-conf="is_host=$((NUMBER == 0)),read_timeout=$wait_s,join_timeout=$wait_s" \
  -m facescale train --head.shards "$RANKS" --resume "$@"
