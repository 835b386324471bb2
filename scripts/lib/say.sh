# shellcheck shell=bash
# Readable output: steps with their time, warnings, and one way to stop.
# Sourced by the scripts.

# shellcheck disable=SC2034 # not every script uses all of them
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi

say() { printf '%s\n' "$*"; }
warn() { printf '%sWarning:%s %s\n' "$red" "$plain" "$*" >&2; }

# stop MESSAGE [WHAT TO DO...]: one line for the problem, one for each thing to do.
stop() {
    printf '%sStopped:%s %s\n' "$red" "$plain" "$1" >&2
    shift
    local line
    for line in "$@"; do printf '         %s\n' "$line" >&2; done
    exit 1
}

now_ms() { date +%s%3N; }

# seconds_since MILLISECONDS: "1.4 s"
seconds_since() {
    local elapsed_ms=$(($(now_ms) - $1))
    printf '%d.%d s' $((elapsed_ms / 1000)) $((elapsed_ms % 1000 / 100))
}

step_number=0
step_log=''

# step "What is done" COMMAND...: runs it quietly, in a subshell; prints the time, or on failure all its output.
step() {
    local what=$1 began_ms code=0
    shift
    step_number=$((step_number + 1))
    step_log=$(mktemp)
    began_ms=$(now_ms)
    printf '%s%2d%s  %-66s' "$bold" "$step_number" "$plain" "$what"
    ("$@") >"$step_log" 2>&1 </dev/null || code=$?
    if [ "$code" = 0 ]; then
        printf ' %s%8s%s\n' "$green" "$(seconds_since "$began_ms")" "$plain"
        rm -f "$step_log"
        return 0
    fi
    printf ' %sfailed%s (exit code %d)\n' "$red" "$plain" "$code"
    sed 's/^/      /' "$step_log" >&2
    rm -f "$step_log"
    return "$code"
}
