#!/usr/bin/env bash
# A run on several hosts under Slurm. Start it in the project's folder, which all hosts must see:
#   sbatch --nodes=2 configs/accelerate/slurm.sh configs/cifar10_resnet18.yaml [key=value ...]
# Each host has one task, the launcher, which starts a process for each GPU. Before the time limit, and at a
# preemption, Slurm sends SIGTERM: the run saves a checkpoint, ends with 75, is requeued, and continues from
# that step.
#SBATCH --job-name=quickres
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

python=${PYTHON:-.venv/bin/python}
per_host=${PROCESSES_PER_HOST:-${SLURM_GPUS_ON_NODE:-1}}
cores=${SLURM_CPUS_PER_TASK:-$per_host}
processes=$((SLURM_JOB_NUM_NODES * per_host))

# The rendezvous: the first host of the job, and a port that differs for two jobs on one host.
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

trap : TERM # wait for the run
export QUICKRES_NUM_PROCESSES=$processes

# accelerate's launcher, with the exit code of the run: accelerate itself returns 1 for every failure
launch=(
    "$python" -m pipeline.distributed.launcher --quiet --config_file configs/accelerate/two_nodes.yaml
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$processes"
    --num_cpu_threads_per_process "$((cores > per_host ? cores / per_host : 1))"
    --main_process_ip "$address" --main_process_port "$port"
)
status=0
# srun of Slurm 22.05 to 23.02 gives a task one core of the job, unless this option gives it more
# shellcheck disable=SC2016 # SLURM_NODEID differs on each host
srun --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
    bash -c 'exec "${@:2:$1}" --machine_rank "$SLURM_NODEID" -m pipeline.train "${@:$1+2}"' \
    launch "${#launch[@]}" "${launch[@]}" "$@" resume=auto || status=$?

if ((status == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
