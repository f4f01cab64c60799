#!/usr/bin/env bash
# A sweep on Slurm: a Ray node on each machine of the job, the sweep's own process on the first. From the checkout:
#
#     sbatch clusters/slurm.sh experiments/resnet56-cifar10.yaml /shared/sweeps
#
# Submitted again, or requeued after a preemption, it goes on with the sweep. The machines are the job's alone:
# at its end Ray stops every Ray process of yours on them.
#
# <CHANGE-ME:partition>: a partition with GPUs; `sinfo` lists them.
#SBATCH --partition=<CHANGE-ME:partition>
# <CHANGE-ME:gpus>: GPUs of one machine of the partition.
#SBATCH --gpus-per-node=<CHANGE-ME:gpus>
# <CHANGE-ME:cpus>: CPUs of one machine of the partition.
#SBATCH --cpus-per-task=<CHANGE-ME:cpus>
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --time=12:00:00
#SBATCH --job-name=prunesearch
#SBATCH --output=%x-%j.log
set -euo pipefail

if (($# != 2)); then
    echo "expected: sbatch clusters/slurm.sh EXPERIMENT STORAGE, got $# arguments" >&2
    exit 2
fi
# <CHANGE-ME:environment>: where prunesearch and ray[default] are installed, on a file system that all machines see.
export PATH="<CHANGE-ME:environment>/bin:$PATH"

# Whoever reaches Ray's ports and knows the token can run programs as you. It lies in your home: ~/.ray/auth_token.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null

export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds; importing from a busy file system takes its time
export RAY_USAGE_STATS_ENABLED=0

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="${machines[0]}" hostname --ip-address)
address=${address%% *}:$((20000 + SLURM_JOB_ID % 10000)) # two jobs do not meet on one port

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus="$SLURM_CPUS_PER_TASK" -- \
    prunesearch run "$1" --set "storage=$2" --resume --plain --address "$address"
