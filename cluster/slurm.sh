#!/usr/bin/env bash
# Slurm: one training on the job's hosts, class centres in shards inside a host, copies across hosts.
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 cluster/slurm.sh emore_r100 --data.path DIR
#   RANKS=4 sbatch --nodes=2 --cpus-per-task=4 cluster/slurm.sh small --device cpu
# RANKS per host: its GPUs by default. OUTPUT: the folder of the run. Submit from the folder that has
# cluster/. At its time limit the run saves and is queued again, and continues from there, as it does
# after a requeue by Slurm. TORCHRUN, WAIT_S, RESTARTS, SAVE_S and PORT are those of host.sh.
# Tested on Slurm 22.05 with two hosts without GPUs: run to the end, and stopped by a signal and
# requeued; the model equals that of one host to the bit.
#SBATCH --job-name=facescale
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
ranks=${RANKS:-${SLURM_GPUS_ON_NODE:?no GPUs in this job; say how many ranks a host has: RANKS=4}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export NUM_HOSTS=$SLURM_NNODES FIRST=$first ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} RANKS=$ranks

# shellcheck disable=SC2016  # expanded on each host
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c \
  'NUMBER=$SLURM_NODEID HOST=$SLURMD_NODENAME exec cluster/host.sh "$@"' host \
  --output "${OUTPUT:-runs/slurm-$SLURM_JOB_ID}" "$@" &
step=$!
leaving=
trap 'leaving=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM  # srun would kill the ranks
status=0
wait $step || status=$?
if [ -n "$leaving" ]; then
  wait $step || true # while the ranks save
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
