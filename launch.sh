#!/usr/bin/env bash
# Sets up .venv on the first start, then trains, tests, or runs a command of `python -m pipeline`.
set -euo pipefail

usage() {
    cat <<'HELP'
Usage: ./launch.sh [CONFIG] [key=value ...]   train a recipe; without CONFIG, configs/quickstart.yaml
       ./launch.sh CONFIG --dry-run           print the plan of that run; train nothing
       ./launch.sh COMMAND [argument ...]     run `python -m pipeline COMMAND`: report, evaluate, explain,
                                              predict, export, check, check-data, summary, lr-find,
                                              config-reference
       ./launch.sh bench [CONFIG] [key=value ...]  find the bottleneck: loader, step or communication
       ./launch.sh sweep FILE                 train a base recipe with lists of overrides, and compare
       ./launch.sh test [argument ...]        format, lint, types and all tests; with arguments, only pytest
       ./launch.sh lock [--upgrade]           write requirements-*.lock from pyproject.toml

The first start makes .venv and installs the locked packages (3.5 GiB to download, 6.7 GiB on disk).
Paths are relative to this folder. At its end a run prints the path of its folder, runs/NAME-TIME.

Examples: ./launch.sh configs/cifar10_resnet18.yaml duration=5ep optimizer.lr=0.2
          NUM_PROCESSES=2 ./launch.sh configs/quickstart.yaml
          ./launch.sh explain runs/latest

Environment: NUM_PROCESSES    processes to train with (default: one per visible GPU; on the CPU, one)
             OMP_NUM_THREADS  CPU threads per process (default: the cores divided by the processes)
             DALI             cuda120, or cuda130, half the download (default: as installed, else cuda120)
             PYTHON           interpreter to make .venv with, 3.11 or newer

Ctrl-C, SIGTERM or SIGHUP saves a checkpoint and stops the run (resume=auto continues); a second one kills it.
Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped by a signal after a checkpoint.
HELP
}

say() { printf 'launch.sh: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 2
}

# --- set-up -----------------------------------------------------------------------------------------------

python=.venv/bin/python
stamp=.venv/.installed # written last: the DALI extra, and a hash of all files that decide what is installed

fingerprint() { { cat "requirements-$dali.lock" pyproject.toml .venv/pyvenv.cfg && pwd; } | sha256sum; }

is_current() { [[ -x $python && -f $stamp && $(<"$stamp") == "$dali $(fingerprint)" ]]; }

find_python() {
    local candidate candidates=(python3.13 python3.12 python3.11 python3)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' &>/dev/null
        then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python >= 3.11 with venv among: ${candidates[*]}." \
        "Install one (Debian, Ubuntu: apt install python3 python3-venv)," \
        "or set PYTHON: PYTHON=/path/to/python3.11 ./launch.sh"
}

make_venv() { # make a .venv that works and has uv, with the version and the hash in the lock
    if ! "$python" -c '' &>/dev/null; then
        local interpreter
        interpreter=$(find_python)
        say "making .venv with $interpreter"
        "$interpreter" -m venv --clear .venv
    fi
    if [[ ! -x .venv/bin/uv ]]; then
        "$python" -m ensurepip >/dev/null
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
            -r <(sed -n '/^uv==/,/[^\\]$/p' "requirements-$dali.lock")
    fi
}

install() {
    rm -f "$stamp"
    make_venv
    say "installing requirements-$dali.lock into .venv"
    # sync also removes packages that are not in the lock, so the two DALI packages, which share files, are
    # never both installed. The lock also constrains the build tools: grad-cam is a source package.
    # Bytecode is compiled here, on all cores: else the first start would be slow, or every start if
    # PYTHONDONTWRITEBYTECODE is set, as in many containers.
    .venv/bin/uv pip sync --python "$python" --require-hashes --compile-bytecode \
        --build-constraints "requirements-$dali.lock" "requirements-$dali.lock"
    .venv/bin/uv pip install --python "$python" --quiet --no-deps --no-build-isolation --editable .
    printf '%s %s\n' "$dali" "$(fingerprint)" >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

set_up() {
    dali=cuda120
    [[ ! -s $stamp ]] || read -r dali _ <"$stamp"
    dali=${DALI:-$dali}
    [[ -f requirements-$dali.lock ]] || die "DALI=$dali: choose cuda120 or cuda130"
    is_current && return
    (
        if command -v flock >/dev/null && ! flock --nonblock 9; then
            say "waiting for another start that is installing"
            flock 9
        fi
        is_current || install
    ) 9<launch.sh >&2
    start_time=$(date +%s.%N)
}

# --- train ------------------------------------------------------------------------------------------------

# Count the GPUs that a CUDA program sees; it ignores CUDA_VISIBLE_DEVICES from the first invalid entry on.
count_gpus() {
    local entry entries listed visible=0
    listed=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || listed=0
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        IFS=, read -ra entries <<<"$CUDA_VISIBLE_DEVICES"
        for entry in "${entries[@]}"; do
            [[ $entry == GPU-* || $entry == MIG-* || ($entry =~ ^[0-9]+$ && $entry -lt $listed) ]] || break
            visible=$((visible + 1))
        done
        listed=$((listed > 0 ? visible : 0))
    fi
    echo "$listed"
}

# List the processes of this run, except zombies, by a variable that they inherit: torchrun starts each rank
# in a session of its own, and accelerate's launcher may die before the trainer. A signal to the process group
# of launch.sh must not interrupt the listing.
run_pids() (
    trap '' HUP INT TERM
    grep -lzsxF "QUICKRES_EXIT_CODE_FILE=$scratch/exit_code" /proc/[0-9]*/environ | cut -d/ -f3 || true
)

# Send SIGTERM even after SIGINT, at which accelerate prints a traceback. There is no process group before
# `setsid` has run, or if torchrun, which passes the signal on to its ranks, has been killed.
ask_to_stop() { kill -s TERM -- "-$launcher" || kill -s TERM "$launcher" || signal_all TERM; } 2>/dev/null

signal_all() { run_pids | xargs --no-run-if-empty kill -s "$1" || true; }

stop() { # at the first signal, ask; at a later one that is not its echo (`timeout` sends two), kill
    if [[ -z $signal ]]; then
        signal=$1 signal_at=$SECONDS
        [[ -z $launcher ]] || ask_to_stop
        say "stopping the run; a second signal kills it" || true
    elif ((SECONDS > signal_at + 1)); then
        signal_all KILL 2>/dev/null
    fi
}

# Run a command in a process group of its own until all its processes are gone; exit with the trainer's code.
run_group() {
    local status
    signal='' launcher=''
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'stop 1' HUP
    trap 'stop 2' INT
    trap 'stop 15' TERM
    trap '' PIPE # Ctrl-C ends a `| tee` first
    QUICKRES_EXIT_CODE_FILE=$scratch/exit_code setsid "$@" </dev/null &
    launcher=$!
    [[ -z $signal ]] || ask_to_stop
    while true; do
        status=0
        wait "$launcher" || status=$? # a trapped signal ends the wait too
        kill -0 "$launcher" 2>/dev/null || break
    done
    while [[ -n $(run_pids) ]]; do sleep 0.1 || true; done
    if [[ -s $scratch/exit_code ]]; then
        status=$(<"$scratch/exit_code") # accelerate returns 1 for every failure
    elif [[ -n $signal ]]; then
        status=$((128 + signal))
    fi
    exit "$status"
}

train() {
    local counted device gpus=0 hardware=cpu processes recipe=configs/quickstart.yaml threads where='the CPU'
    if [[ $# -gt 0 && $1 != *=* ]]; then
        recipe=$1
        shift
    fi
    trap 'exit 130' INT # bash alone would ignore a SIGINT that reaches only bash while another command runs
    exec {counted}< <(count_gpus) # nvidia-smi may take a second; the recipe is checked meanwhile
    device=$("$python" -m pipeline check --print-device "$recipe" "$@")
    if [[ $device != cpu ]]; then
        read -r gpus <&"$counted"
        if [[ $gpus -gt 0 || $device == gpu ]]; then hardware=gpu where='the GPU'; fi
    fi
    exec {counted}<&-
    processes=${NUM_PROCESSES:-$((gpus > 0 ? gpus : 1))}
    [[ $processes =~ ^[1-9][0-9]*$ ]] || die "NUM_PROCESSES=$processes: expected a whole number above 0"
    ((gpus == 0 || processes <= gpus)) ||
        die "NUM_PROCESSES=$processes, but only $gpus GPUs are visible; choose at most one process per GPU"
    ((processes == 1)) || "$python" -m pipeline check --processes "$processes" "$recipe" "$@" >/dev/null
    threads=${OMP_NUM_THREADS:-$(($(nproc) > processes ? $(nproc) / processes : 1))}
    [[ $hardware == cpu || $processes -eq 1 ]] || where='one GPU each'
    say "processes: $processes, on $where; CPU threads each: $threads"
    export QUICKRES_START_TIME=$start_time QUICKRES_NUM_PROCESSES=$processes
    # one process needs no launcher, whose imports take three seconds
    if ((processes == 1)) || [[ " $* " == *' --dry-run '* ]]; then
        OMP_NUM_THREADS=$threads run_group "$python" -m pipeline.train "$recipe" "$@"
    fi
    run_group "$python" -m accelerate.commands.launch --quiet \
        --config_file "configs/accelerate/${hardware}2.yaml" --num_processes "$processes" \
        --num_cpu_threads_per_process "$threads" -m pipeline.train "$recipe" "$@"
}

# --- test, lock -------------------------------------------------------------------------------------------

run_tests() {
    if [[ $# -eq 0 ]]; then
        say "ruff format --check" && "$python" -m ruff format --check .
        say "ruff check" && "$python" -m ruff check .
        say "pyright" && PYRIGHT_PYTHON_IGNORE_WARNINGS=1 "$python" -m pyright
        say "pytest"
    fi
    # one worker a core, and with a GPU no workers (tests/conftest.py); of two -n, pytest takes the last: `-n 0` is one process
    exec "$python" -m pytest -n auto --dist worksteal "$@"
}

lock() {
    dali=cuda120
    make_venv
    for dali in cuda120 cuda130; do
        .venv/bin/uv pip compile pyproject.toml --extra "$dali" --group dev --universal \
            --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
            --quiet --custom-compile-command './launch.sh lock' --output-file "requirements-$dali.lock" "$@"
    done
}

case ${1:-} in
    -h | --help)
        usage
        exit
        ;;
    -*) die "unknown option $1; ./launch.sh -h lists the commands and options" ;;
esac
start_time=$(date +%s.%N)
cd "$(dirname "$(readlink -f "$0")")"
case ${1:-} in
    lock) lock "${@:2}" ;;
    test)
        set_up
        run_tests "${@:2}"
        ;;
    '' | train | *=* | */* | *.yaml | *.yml)
        set_up
        [[ ${1:-} != train ]] || shift
        train "$@"
        ;;
    bench)
        set_up
        exec "$python" -m benchmarks "${@:2}"
        ;;
    sweep)
        set_up
        exec "$python" -m benchmarks sweep "${@:2}"
        ;;
    *)
        set_up
        exec "$python" -m pipeline "$@"
        ;;
esac
