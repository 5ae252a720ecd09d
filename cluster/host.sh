#!/usr/bin/env bash
# One host's part of a training over several hosts; ssh.sh and slurm.sh start it on each of them.
#   NUMBER=0 NUM_HOSTS=2 HOST=alpha FIRST=alpha ID=any RANKS=8 cluster/host.sh small --output DIR
# TORCHRUN says how torchrun is started there: "env OMP_NUM_THREADS=4 /opt/venv/bin/torchrun".
# A host out of reach: the ranks end after --timeout_s, and torchrun waits WAIT_S seconds for it.
# Back by then, the run goes on from its last checkpoint; else torchrun ends (docs/parallelism.md).
set -euo pipefail
read -ra torchrun <<<"${TORCHRUN:-torchrun}"
wait_s=${WAIT_S:-600}

# is_host and local-addr: torchrun would look for FIRST among this host's own names, and tell the
# others its own name for itself; neither need be the one by which hosts reach each other.
# read_timeout: torchrun asks FIRST all the time, and gives up for good where that takes longer.
exec "${torchrun[@]}" --nnodes="$NUM_HOSTS" --nproc-per-node="$RANKS" --local-addr="$HOST" \
  --max-restarts="${RESTARTS:-3}" --shutdown-timeout="${SAVE_S:-110}" \
  --rdzv-backend=c10d --rdzv-id="$ID" --rdzv-endpoint="$FIRST:${PORT:-29400}" \
  --rdzv-conf="is_host=$((NUMBER == 0)),read_timeout=$wait_s,join_timeout=$wait_s" \
  -m facescale train --head.shards "$RANKS" --resume "$@"
