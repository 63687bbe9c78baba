#!/usr/bin/env bash
# Sets up .venv on the first start, then trains, tests, or runs a command of `python -m pipeline`.
# `sh launch.sh` starts another shell than bash, or bash in its POSIX mode
case ${BASH_VERSION:-}:${SHELLOPTS:-} in :* | *posix*) exec bash "$0" "$@" ;; esac
set -euo pipefail

usage() {
    cat <<'HELP'
Usage: ./launch.sh [CONFIG] [key=value ...]   train a recipe; without CONFIG, configs/quickstart.yaml
       ./launch.sh CONFIG --dry-run           print the plan of that run; train nothing
       ./launch.sh COMMAND [argument ...]     run `python -m pipeline COMMAND`: report, tensorboard, evaluate,
                                              explain, predict, export, check, check-data, compile, summary,
                                              lr-find, config-reference
       ./launch.sh bench [CONFIG] [key=value ...]  find the bottleneck: loader, step or communication
       ./launch.sh sweep FILE                 train a base recipe with lists of overrides, and compare
       ./launch.sh test [argument ...]        format, lint, types and all tests; with arguments, only pytest
       ./launch.sh lock [--upgrade]           write requirements-*.lock from pyproject.toml

The first start makes .venv and installs the locked packages (3.6 GiB to download, 7.1 GiB on disk).
Paths are relative to this folder. At its end a run prints the path of its folder, runs/NAME-TIME.

Examples: ./launch.sh configs/cifar10_resnet18.yaml duration=5ep optimizer.lr=0.2
          NUM_PROCESSES=2 ./launch.sh configs/quickstart.yaml
          ./launch.sh explain runs/latest

Environment: NUM_PROCESSES    processes to train with (default: one per visible GPU; on the CPU, one)
             OMP_NUM_THREADS  CPU threads per process (default: cores / processes; one process: free cores)
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

checking='' # process id of the command that checks the recipe
interrupted() {
    [[ -z $checking ]] || kill "$checking" 2>/dev/null || true
    say "stopped before the start" || true
    exit $((128 + $1))
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

# Refuse what an installation would not mend, before anything is removed.
check_rights() {
    local status=0 folder=$PWD/.venv
    "$python" -c '' &>/dev/null || status=$?
    ((status != 126)) ||
        die "$python is $(readlink -m "$python"), which this user cannot start. Let its owner allow it, or make" \
            "an environment of your own: rm -r .venv; PYTHON=/usr/bin/python3 ./launch.sh"
    [[ -e .venv ]] || folder=$PWD
    [[ -w $folder ]] ||
        die "$folder: packages must be installed, and this user cannot write there. Let its owner start" \
            "./launch.sh once, or use a copy of $PWD"
}

install() {
    check_rights
    rm -f "$stamp"
    make_venv
    "$python" -m pipeline.process.relocate # the scripts of a copied .venv start the Python of the original
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
        IFS=, read -ra entries < <(echo "$CUDA_VISIBLE_DEVICES") # <<< may need a temporary file
        for entry in "${entries[@]}"; do
            [[ $entry == GPU-* || $entry == MIG-* || ($entry =~ ^[0-9]+$ && $entry -lt $listed) ]] || break
            visible=$((visible + 1))
        done
        listed=$((listed > 0 ? visible : 0))
    fi
    echo "$listed"
}

# List the processes of this run, except zombies, by a variable that they inherit: torchrun starts each rank
# in a session of its own, and the launcher may die before the trainer. A signal to the process group of
# launch.sh must not interrupt the listing.
run_pids() (
    trap '' HUP INT TERM
    grep -lzsxF "QUICKRES_LAUNCH=$launch" /proc/[0-9]*/environ | cut -d/ -f3 || true
)

# There is no process group before `setsid` has run, or if the launcher, which passes the signal on to its
# ranks, has been killed.
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

# Add the time of its exit to the result of the run, which has written a time in microseconds and the path of
# its result.json to the pipe.
note_exit() {
    local at exit_us file now=${EPOCHREALTIME:-}
    now=${now/[.,]/}
    read -r -t 0 <&"$results" && read -r at file <&"$results" && [[ -n $now && $at -le $now ]] || return 0
    exit_us=$(printf '%07d' $((now - at)))
    sed -i "s/^  \"exit\": null/  \"exit\": ${exit_us::-6}.${exit_us: -6}/" "$file" 2>/dev/null || true
}

# Run a command in a process group of its own until all its processes are gone; exit with its code.
run_group() {
    local launch=$$-$start_time results status=0
    signal='' launcher=''
    exec {results}<> <(:) # a pipe that is open at both ends
    trap 'stop 1' HUP
    trap 'stop 2' INT
    trap 'stop 15' TERM
    trap '' PIPE # Ctrl-C ends a `| tee` first
    QUICKRES_LAUNCH=$launch QUICKRES_RESULT_PIPE=/proc/$$/fd/$results setsid "$@" </dev/null &
    launcher=$!
    [[ -z $signal ]] || ask_to_stop
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done # a trapped signal ends a wait
    while [[ -n $(run_pids) ]]; do sleep 0.1 || true; done
    wait "$launcher" || status=$?
    note_exit
    [[ -z $signal ]] || ((status < 128)) || status=$((128 + signal))
    exit "$status"
}

# Print the answer of `python -m pipeline check`; end if the recipe is bad. Ctrl-C reaches launch.sh alone: in a
# Python that has just started, it would print a traceback.
check() {
    local answers status=0
    exec {answers}< <(exec setsid "$python" -m pipeline check "$@")
    checking=$!
    read -r answer <&"$answers" || true
    wait "$checking" || status=$?
    checking=''
    exec {answers}<&-
    ((status == 0)) || exit "$status"
}

# A pipe can be read only once, and every process reads the recipe: if it comes by a pipe, hand its name and its
# text over.
read_pipe() {
    local LC_ALL=C limit=100000 text # bytes, not characters; a variable can hold 128 KiB
    [[ -e $1 && ! -d $1 && (! -f $1 || $1 == /dev/* || $1 == /proc/*) ]] || return 0
    text=$(head -c $((limit + 1)) "$1" | tr -d '\0') || die "$1: cannot be read; give a YAML recipe"
    ((${#text} <= limit)) || die "$1: longer than $limit bytes; a recipe is a short YAML file"
    export QUICKRES_RECIPE=$1$'\n'$text
}

# True if somebody else starts the processes of the run, as a PyTorchJob of Kubernetes does
is_joining() {
    [[ -n ${RANK:-} && -n ${MASTER_ADDR:-} && -n ${MASTER_PORT:-} && ${WORLD_SIZE:-1} != 1 ]]
}

train() {
    local answer cores counted device gpus=0 hardware=cpu processes recipe=configs/quickstart.yaml threads total
    local where='the CPU'
    if [[ $# -gt 0 && $1 != *=* ]]; then
        recipe=$1
        shift
    fi
    read_pipe "$recipe"
    exec {counted}< <(count_gpus) # nvidia-smi may take a second; the recipe is checked meanwhile
    check --for-launcher "$recipe" "$@"
    device=${answer% *} cores=${answer#* }
    if [[ $device != cpu ]]; then
        read -r gpus <&"$counted"
        if [[ $gpus -gt 0 || $device == gpu ]]; then hardware=gpu where='the GPU'; fi
    fi
    exec {counted}<&-
    count_processes
    ((total == 1)) || check --processes "$total" "$recipe" "$@"
    export QUICKRES_USER_THREADS=${OMP_NUM_THREADS:-} # empty: the trainer may take fewer, beside other programs
    threads=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
    threads=${threads%%,*} # OpenMP takes a list, for nested threads
    [[ $threads =~ ^[1-9][0-9]*$ ]] || die "OMP_NUM_THREADS=$threads: expected a whole number above 0"
    [[ $hardware == cpu || $processes -eq 1 ]] || where='one GPU each'
    if is_joining; then
        say "process $RANK of $total (RANK and WORLD_SIZE), on $where; CPU threads: at most $threads"
    else
        say "processes: $processes, on $where; CPU threads each: at most $threads"
    fi
    export QUICKRES_START_TIME=$start_time QUICKRES_NUM_PROCESSES=$total
    # one process needs no launcher, whose imports take three seconds
    if ((processes == 1)) || [[ " $* " == *' --dry-run '* ]]; then
        OMP_NUM_THREADS=$threads run_group "$python" -m pipeline.train "$recipe" "$@"
    fi
    run_group "$python" -m pipeline.distributed.launcher --quiet \
        --config_file "configs/accelerate/${hardware}2.yaml" --num_processes "$processes" \
        --num_cpu_threads_per_process "$threads" -m pipeline.train "$recipe" "$@"
}

# Set the number of processes to start here, and of all that the run has.
count_processes() {
    processes=${NUM_PROCESSES:-$((gpus > 0 ? gpus : 1))}
    [[ $processes =~ ^[1-9][0-9]*$ ]] || die "NUM_PROCESSES=$processes: expected a whole number above 0"
    ((gpus == 0 || processes <= gpus)) ||
        die "NUM_PROCESSES=$processes, but only $gpus GPUs are visible; choose at most one process per GPU"
    total=$processes
    is_joining || return 0
    [[ ${NUM_PROCESSES:-1} == 1 ]] ||
        die "NUM_PROCESSES=$processes, but RANK and WORLD_SIZE make this start one process of $WORLD_SIZE." \
            "Unset NUM_PROCESSES; or, to train here alone, unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT"
    [[ $WORLD_SIZE =~ ^[1-9][0-9]{0,5}$ ]] || die "WORLD_SIZE=$WORLD_SIZE: expected a whole number above 0"
    processes=1 total=$WORLD_SIZE
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
trap 'interrupted 2' INT
trap 'interrupted 15' TERM
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
        for argument in "${@:2}"; do read_pipe "$argument"; done
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
