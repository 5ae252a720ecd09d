#!/usr/bin/env bash
# Slurm: one training over the job's hosts, class centres in shards inside a host, copies across.
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 cluster/slurm.sh emore_r100 --data.path DIR
#   RANKS=4 sbatch --nodes=2 --cpus-per-task=4 cluster/slurm.sh small --device cpu
# RANKS a host: its GPUs when not given. OUTPUT: the folder of the run. Submit from the folder that
# holds cluster/. Out of time, the run saves and is queued again, and goes on from there; so it does
# where Slurm itself requeues it. TORCHRUN, WAIT_S, RESTARTS, SAVE_S and PORT are those of host.sh.
# Tried on Slurm 22.05 with two hosts without GPUs: run to its end, and asked to leave and queued
# again; model equal to one host's to the bit.
#SBATCH --job-name=facescale
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
ranks=${RANKS:-${SLURM_GPUS_ON_NODE:?no GPUs in this job; say how many ranks a host has: RANKS=4}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export NUM_HOSTS=$SLURM_NNODES FIRST=$first ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} RANKS=$ranks

# shellcheck disable=SC2016  # these are known on each host only
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c \
  'NUMBER=$SLURM_NODEID HOST=$SLURMD_NODENAME exec cluster/host.sh "$@"' host \
  --output "${OUTPUT:-runs/slurm-$SLURM_JOB_ID}" "$@" &
step=$!
leaving=
trap 'leaving=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM  # srun itself would kill the ranks
status=0
wait $step || status=$?
if [ -n "$leaving" ]; then
  wait $step || true # the ranks are saving
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
