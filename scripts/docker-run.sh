#!/usr/bin/env bash
# Runs studies in the container: picks the image, hands over keys, and keeps the results outside.
set -euo pipefail

CONFIGS=(B-FP B-Q4 B-Ada Joint-1 Joint-2 Joint-3)
TASKS=(sst2 wikitext2 rotten_tomatoes imdb)
OPTIONS=(--build --gpu --cpu --results --wandb-key --hf-token --help)
RESULTS_INSIDE=/app/results

usage() {
    cat <<TEXT
Usage: scripts/docker-run.sh [OPTIONS] COMMAND

Commands:
  run-all            all six fixed configurations in turn, on rotten_tomatoes
  run CONFIG TASK    one of them. CONFIG: ${CONFIGS[*]}
                     TASK: ${TASKS[*]}
  shell              bash in the container, for any other run_search.py command

Options:
  --build            build the image first; alone, only build it
  --gpu, --cpu       the image with or without CUDA (default: --gpu where nvidia-smi works)
  --results DIR      folder for the results, made if absent (default: results)
  --wandb-key KEY    log to Weights & Biases, project \$WANDB_PROJECT or alrq
  --hf-token TOKEN   for models and data on the Hugging Face hub that need one
  --help             this text

WANDB_API_KEY and HF_TOKEN are also taken from the environment, where other users of the machine
can't read them, as they can on a command line. With WANDB_PROJECT set, runs are logged there.
TEXT
}

fail() {
    printf 'docker-run.sh: %s\nSee scripts/docker-run.sh --help.\n' "$1" >&2
    exit 2
}

give_up() {
    printf 'docker-run.sh: %s\n' "$1" >&2
    exit 1
}

is_one_of() {
    local value=$1 known
    shift
    for known; do
        if [[ $value == "$known" ]]; then return 0; fi
    done
    return 1
}

# The value itself stays out of the message: it may be a key.
check_value() {
    if (($# < 2)) || [[ -z $2 ]]; then
        fail "\`$1\` must be followed by a value, got none. Write for example $1 VALUE."
    elif [[ $2 == --* ]]; then
        fail "\`$1\` must be followed by a value, got another option. Write for example $1 VALUE."
    fi
}

build=no device='' results=results project=${WANDB_PROJECT:-} words=()

parse() {
    while (($# > 0)); do
        case $1 in
        --build) build=yes ;;
        --gpu | --cpu)
            if [[ -n $device && $device != "${1#--}" ]]; then
                fail "\`--gpu\` and \`--cpu\` exclude each other, got both. Leave one out."
            fi
            device=${1#--}
            ;;
        --results)
            check_value "$@"
            results=$2
            shift
            ;;
        --wandb-key)
            check_value "$@"
            export WANDB_API_KEY=$2
            project=${project:-alrq}
            shift
            ;;
        --hf-token)
            check_value "$@"
            export HF_TOKEN=$2
            shift
            ;;
        --help)
            usage
            exit 0
            ;;
        # What follows a `=` may be a key.
        -*) fail "\`OPTION\` must be one of ${OPTIONS[*]}, got '${1%%=*}'. Use one of those, values after a space." ;;
        *) words+=("$1") ;;
        esac
        shift
    done
}

check_words() {
    local command=${words[0]:-} arguments=$((${#words[@]} - 1))
    case $command in
    run-all | shell)
        if ((arguments > 0)); then
            fail "\`$command\` must stand alone, got '${words[1]}' after it. Leave it out."
        fi
        ;;
    run)
        if ((arguments != 2)); then
            fail "\`run\` must be followed by CONFIG and TASK, got $arguments arguments. Write for example run B-Q4 rotten_tomatoes."
        fi
        is_one_of "${words[1]}" "${CONFIGS[@]}" ||
            fail "\`CONFIG\` must be one of ${CONFIGS[*]}, got '${words[1]}'. Use one of those, or run_search.py in \`shell\`."
        is_one_of "${words[2]}" "${TASKS[@]}" ||
            fail "\`TASK\` must be one of ${TASKS[*]}, got '${words[2]}'. Use one of those, or run_search.py in \`shell\`."
        ;;
    '')
        if [[ $build == no ]]; then
            fail "\`COMMAND\` must be run-all, run or shell, got none. Add one, or --build."
        fi
        ;;
    *) fail "\`COMMAND\` must be run-all, run or shell, got '$command'. Use one of those." ;;
    esac
}

# Prints the absolute path of the results folder, which then exists.
make_results() {
    local folder=$1
    if [[ $folder != /* ]]; then folder=$PWD/$folder; fi
    if [[ $folder == *:* ]]; then
        fail "\`--results\` must be a path without a colon, where docker would split it, got '$folder'. Choose another folder."
    fi
    if ! mkdir -p "$folder" 2>/dev/null || [[ ! -w $folder ]]; then
        fail "\`--results\` must be a folder that can be written, got '$folder'. Choose another one."
    fi
    (cd "$folder" && pwd)
}

# Replaces this process with the container.
start() {
    local image=$1 folder=$2 name inside
    # HOME: the uid of the caller owns no folder in the image, and Ray keeps its token there.
    # --shm-size: Ray's object store lives in shared memory, where docker allows 64 MB.
    local options=(
        --rm --init
        --user "$(id -u):$(id -g)"
        --shm-size 1g
        --env HOME=/tmp
        --volume "$folder:$RESULTS_INSIDE"
        --volume "alrq-cache-$(id -u):/cache"
    )
    if [[ $device == gpu ]]; then options+=(--gpus all); fi
    # Names only: docker takes the values from this environment, not from its arguments.
    for name in WANDB_API_KEY HF_TOKEN; do
        if [[ -n ${!name:-} ]]; then options+=(--env "$name"); fi
    done
    case ${words[0]} in
    shell) inside=(bash) ;;
    run-all) inside=(python run_search.py --space matrix --output-dir "$RESULTS_INSIDE") ;;
    run) inside=(python run_search.py --space "${words[1]}" --task "${words[2]}" --output-dir "$RESULTS_INSIDE") ;;
    esac
    if [[ -n $project && ${words[0]} != shell ]]; then inside+=(--wandb "$project"); fi
    if [[ -t 0 && -t 1 ]]; then
        options+=(--interactive --tty)
    elif [[ ${words[0]} == shell ]]; then
        options+=(--interactive)
    fi
    exec docker run "${options[@]}" "$image" "${inside[@]}"
}

main() {
    parse "$@"
    check_words
    if [[ -z $device ]]; then
        if nvidia-smi >/dev/null 2>&1; then device=gpu; else device=cpu; fi
    fi
    local target=$device repository folder
    if [[ $device == gpu ]]; then target=cuda; fi
    if ((${#words[@]} > 0)); then folder=$(make_results "$results"); fi
    command -v docker >/dev/null || give_up 'docker is not installed. Install it, then try again.'
    if [[ $build == yes ]]; then
        repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
        docker build --target "$target" --tag "alrq:$target" "$repository"
    elif ! docker image inspect "alrq:$target" >/dev/null; then
        give_up "docker has no image alrq:$target. Add --build, or start docker."
    fi
    if ((${#words[@]} > 0)); then start "alrq:$target" "$folder"; fi
}

main "$@"
