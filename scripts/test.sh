#!/usr/bin/env bash
# All checks, as a person and as CI run them: format, circles of modules, lints, the unit tests of every crate, a reader
# that was written from FORMAT.md, then the program's own tests against each PostgreSQL that is installed or can be
# downloaded.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/lib/say.sh
. scripts/lib/machine.sh
. scripts/lib/debian.sh
. scripts/lib/postgres.sh
. scripts/lib/ceph.sh
. scripts/lib/azurite.sh

usage() {
    cat <<'EOF'
Usage: scripts/test.sh [--quick] [--pg MAJOR]... [FILTER]

  --quick      the program's tests with one PostgreSQL only, the newest that is installed; gets no other
  --pg MAJOR   the program's tests with this version only; can be given more than once
  FILTER       only the program's tests whose name contains this, and nothing else

Needs Rust. Gets what else is missing with apt-get and pip, as root or through sudo.
The last line counts: N passed, N failed
EOF
}

quick='' filter='' wanted=()
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=yes ;;
    --pg) wanted+=("${2:?--pg needs a major version, like 16}") && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) filter=$1 ;;
    esac
    shift
done

passed=0 failed=0 report=''

# count NAME PASSED FAILED: one line of the closing table.
count() {
    passed=$((passed + $2)) failed=$((failed + $3))
    report+=$(printf '%-44s %6d %6d' "$1" "$2" "$3")$'\n'
}

# check NAME COMMAND...: passes or fails as a whole.
check() {
    local name=$1
    shift
    say "${bold}== $name${plain}"
    if "$@"; then count "$name" 1 0; else count "$name" 0 1; fi
}

# run_tests COMMAND...: shows its output and leaves it in $log; $code is its exit code.
run_tests() {
    code=0
    "$@" 2>&1 | tee "$log" || code=$?
}

# unit_tests NAME COMMAND...: counts the results that the test harnesses report.
unit_tests() {
    local name=$1 good bad
    shift
    say "${bold}== $name${plain}"
    run_tests "$@"
    good=$(awk '/^test result:/ { for (i = 2; i < NF; i++) if ($(i + 1) ~ /^passed/) sum += $i } END { print sum + 0 }' "$log")
    bad=$(awk '/^test result:/ { for (i = 2; i < NF; i++) if ($(i + 1) ~ /^failed/) sum += $i } END { print sum + 0 }' "$log")
    # A crate that does not compile reports no test at all.
    if [ "$code" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    count "$name" "$good" "$bad"
}

majors() { sed 's/=[^:]*//g; s/:/ /g' <<<"$1"; }

# Always builds the whole workspace and selects targets. With a selection of packages, the features of shared
# dependencies differ, and everything built on them is built again.
cargo_test=(cargo test -q --workspace --no-fail-fast)

# Checks that FORMAT.md is sufficient to read a repository: a reader in Python was written from it. Runs in a subshell,
# so that only this check fails if its packages cannot be installed.
check_format_reader() (
    python=$(python_with python zstandard blake3 cryptography) &&
        "$python" -B tools/test_read_pack.py
)

# program_tests VERSIONS: one closing line for each PostgreSQL.
program_tests() {
    local group good bad all_bad=0
    say "${bold}== Program, with PostgreSQL $(majors "$1")${plain}"
    run_tests in_memory "${cargo_test[@]}" --test program -- --format pretty ${filter:+"$filter"}
    unsteady=$(sed -n 's/^unsteady \(.*\): failed, then passed$/\1/p' "$log")
    for group in any $(majors "$1" | sed 's/[0-9]*/pg&/g'); do
        good=$(grep -cE "^test $group::.*\.\.\. +ok" "$log" || true)
        bad=$(grep -cE "^test $group::.*\.\.\. +FAILED" "$log" || true)
        all_bad=$((all_bad + bad))
        [ $((good + bad)) = 0 ] || count "Program, $(sed 's/^pg/PostgreSQL /; s/^any/without a server/' <<<"$group")" "$good" "$bad"
    done
    # More than a busy moment explains.
    if [ "$(grep -c . <<<"$unsteady")" -gt "$max_unsteady" ]; then count "Program, unsteady tests" 0 1; fi
    # It failed without a failed test: it did not compile, or was killed.
    if [ "$code" != 0 ] && [ "$all_bad" = 0 ]; then count "Program (did not finish)" 0 1; fi
}

# Tests that failed and then passed when they ran again, at most so many in one run.
max_unsteady=5 unsteady=''
[ -z "${CI:-}" ] || export BARMANFS_TEST_TWICE=yes

# In CI a commit decides what the unit tests choose at random: each commit is tried with other choices, and one that
# passed passes again. Everywhere else each run chooses its own.
if [ -n "${CI:-}" ] && commit=$(git rev-parse --verify --quiet HEAD 2>/dev/null); then
    export PROPTEST_RNG_SEED=$((16#${commit:0:8}))
fi

# chosen_postgres: "15=BINDIR:16=BINDIR" of the installed versions that were requested.
chosen_postgres() {
    local lines
    lines=$(installed_postgres)
    if [ ${#wanted[@]} -gt 0 ]; then
        lines=$(grep -E "^($(IFS='|' && say "${wanted[*]}"))=" <<<"$lines" || true)
    elif [ -n "$quick" ]; then
        lines=$(tail -1 <<<"$lines")
    fi
    paste -sd: <<<"$lines"
}

need_rust
need_build_and_mount_tools
have python3 || install_packages python3   # looks for circles
have openssl || install_packages openssl   # makes certificates for the tests of TLS
have sshd || [ -x /usr/sbin/sshd ] || install_packages openssh-server # the other host of remote restores
have ip || [ -x /usr/sbin/ip ] || install_packages iproute2           # the cable to another host, which a test pulls
have faketime || install_packages faketime # puts the program's clock forward
have rsync || install_packages rsync       # Barman copies with it
# A storage that takes snapshots, and a disk with a quota.
[ "$(id -u)" != 0 ] || have mkfs.btrfs || install_packages btrfs-progs
have gpg || install_packages gpg gpg-agent # and encrypts with it
have age || install_packages age             # opens what keys are wrapped in
have promtool || get_promtool || warn "Without promtool, a test does not look at the names of metrics"
# WAL is exchanged with it, and its homes are imported.
if barman=$(python_with barman barman); then
    export BARMANFS_TEST_BARMAN=${barman%/bin/python}
else
    warn "Without Barman, tests neither exchange WAL with it nor import what it has"
fi
# Repositories that it makes are imported.
if BARMANFS_TEST_PGBACKREST=$(get_pgbackrest); then
    export BARMANFS_TEST_PGBACKREST
else
    warn "Without a new pgBackRest, no repository of one is imported"
fi
have pgbackrest || install_packages pgbackrest # an old one, whose repositories are imported too
# Its clusters live on a repository.
have etcd || install_packages etcd-server
if patroni=$(python_with patroni etcd:'patroni[etcd3]' psycopg:'psycopg[binary]'); then
    export BARMANFS_TEST_PATRONI=${patroni%/bin/python}
else
    warn "Without Patroni, no cluster is made of a repository"
fi
need_space "$root" 4000
need_space "${TMPDIR:-/tmp}" 3000
if [ ${#wanted[@]} -gt 0 ]; then
    get_postgres "${wanted[@]}"
elif [ -z "$quick" ] || [ -z "$(installed_postgres)" ]; then
    get_postgres 15 16 17 18 19
fi
versions=$(chosen_postgres)
export BARMANFS_TEST_PG_BINDIRS=$versions
[ -n "$versions" ] || stop "None of the PostgreSQL versions asked for can be had here: ${wanted[*]}"

began_ms=$(now_ms)
log=$(mktemp)
store=''
trap 'rm -f "$log"; [ -z "$store" ] || { stop_azurite "$store"; stop_rgw "$store"; }' EXIT
# Repositories are in an object store, and copied into one. Only the topics 'bucket' and 'copy' and the unit tests need it.
if [ -z "$filter" ] || [[ "bucket copy" = *"${filter%%::*}"* ]]; then
    store=$(mktemp -d "${TMPDIR:-/tmp}/rgw.XXX")
    if have_ceph && start_rgw "$store" && make_rgw_bucket packs && make_rgw_locked_bucket locked; then
        export BARMANFS_TEST_S3="$rgw_endpoint packs $rgw_access_key $rgw_secret_key"
        say "A gateway of Ceph answers at $rgw_endpoint"
    else
        warn "Without a gateway of Ceph, buckets are tested in a directory only"
        [ ! -e "$store/start.log" ] || tail -5 "$store/start.log" >&2
    fi
    if start_azurite "$store" && make_azurite_container packs; then
        export BARMANFS_TEST_AZURE=packs AZURITE_BLOB_STORAGE_URL=$azurite_endpoint
        say "Azurite answers at $azurite_endpoint"
    else
        warn "Without Azurite, no copy is tested in Azure's words"
    fi
fi
if [ -z "$filter" ]; then
    check "Format" cargo fmt --all --check
    check "No circles" scripts/circles.py
    check "Lints" cargo clippy -q --workspace --all-targets -- -D warnings
    # All test targets but 'program'.
    unit_tests "Unit tests of libraries, program and tools" "${cargo_test[@]}" --lib --bins --test '[!p]*' --test 'pi*'
    check "Reader written from FORMAT.md" check_format_reader
fi
program_tests "$versions"

say
say "$bold$(printf '%-44s %6s %6s' "In $(seconds_since "$began_ms")" passed failed)$plain"
printf '%s' "$report"
[ -z "$unsteady" ] || printf '\nUnsteady, each is a fault to find:\n%s\n' "$unsteady"
say
say "$passed passed, $failed failed"
[ "$failed" = 0 ]
