#!/usr/bin/env bash
# barmanfs in a few minutes, on a private PostgreSQL in a temporary directory: backs it up while it works, mounts the
# backups, starts a copy, runs a server on a clone, and recovers another copy to the last transaction. Leaves nothing behind.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
. scripts/lib/say.sh
. scripts/lib/machine.sh
. scripts/lib/debian.sh
. scripts/lib/postgres.sh

scale=${BARMANFS_DEMO_SCALE:-20} # pgbench's; 20 is 300 MB
case ${1:-} in
'') ;;
-h | --help)
    say "Usage: scripts/demo.sh"
    say "Needs Rust. Gets what else is missing with apt-get, as root or through sudo."
    say "BARMANFS_DEMO_SCALE sets the size of the database in pgbench's unit of 15 MB (20 unless told)."
    exit 0
    ;;
*) stop "Unknown argument $1" "scripts/demo.sh --help" ;;
esac

began_ms=$(now_ms)
demo=''
user=''
bin=''
load_pid=''

# as_user COMMAND...: PostgreSQL refuses root, so servers and barmanfs run as the database user.
as_user() {
    if [ "$(id -u)" = 0 ]; then
        runuser -u "$user" -- env HOME="$demo" LC_ALL=C.UTF-8 "$@"
    else
        env LC_ALL=C.UTF-8 "$@"
    fi
}

barmanfs() { as_user "$demo/barmanfs" -c "$demo/barmanfs.conf" "$@"; }

# query DATABASE-DIRECTORY SQL: runs SQL on the server of that directory; each has its own socket directory.
query() { as_user "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -h "$1.socket" -U postgres -d postgres -c "$2"; }

server_start() {
    as_user mkdir -p "$1.socket"
    as_user "$bin/pg_ctl" -s -w -t 120 -D "$1" -l "$1.log" -o "-k '$1.socket' -c listen_addresses=''" start ||
        { tail -20 "$1.log" && return 1; }
}

server_stop() { as_user "$bin/pg_ctl" -s -D "$1" -m "$2" stop; }

# Reads the kernel's mount table: root cannot look into another user's mount.
is_mounted() { grep -q " $demo/mnt " /proc/self/mountinfo; }

clean_up() {
    local code=$? directory
    set +e
    trap - EXIT INT TERM
    [ -n "$demo" ] || exit "$code"
    cd /
    {
        if is_mounted; then
            barmanfs clone destroy main test1 --stop
            barmanfs umount --force "$demo/mnt" || as_user fusermount3 -uz "$demo/mnt"
        fi
        for directory in "$demo/primary" "$demo/copy" "$demo/recovered"; do
            [ ! -f "$directory/postmaster.pid" ] || server_stop "$directory" immediate
        done
    } >/dev/null 2>&1
    if is_mounted; then
        warn "$demo/mnt is still mounted; the files stay in $demo"
    else
        rm -rf "$demo"
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

install_what_is_missing() {
    need_build_and_mount_tools
    [ -n "$(installed_postgres)" ] || get_postgres 15
}

build() { cargo build --release --locked -p barmanfs; }

make_server() {
    as_user "$bin/initdb" -D "$demo/primary" -U postgres -A trust -E UTF8 --locale=C -k
    cat >>"$demo/primary/postgresql.conf" <<EOF
wal_level = replica
archive_mode = on
archive_command = '$demo/barmanfs -c $demo/barmanfs.conf wal-archive main %p'
EOF
    cat >"$demo/barmanfs.conf" <<EOF
[barmanfs]
repository = $demo/repository

[main]
description = The demonstration's server
conninfo = host=$demo/primary.socket user=postgres dbname=postgres
streaming_conninfo = host=$demo/primary.socket user=postgres
EOF
    server_start "$demo/primary"
}

fill() { as_user "$bin/pgbench" -i -q -s "$scale" -h "$demo/primary.socket" -U postgres postgres; }

start_load() {
    as_user "$bin/pgbench" -n -c 2 -T 600 -h "$demo/primary.socket" -U postgres postgres >"$demo/load.log" 2>&1 &
    load_pid=$!
    sleep 2
}

# pgbench ends when its connections end; then no transaction is in progress any more.
stop_load() {
    query "$demo/primary" "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'pgbench'"
    wait "$load_pid" || true
} >/dev/null

take_backup() { barmanfs backup main --fast-checkpoint; }

mount_backups() {
    as_user mkdir -p "$demo/mnt"
    barmanfs mount "$demo/mnt"
}

copy_latest() { as_user cp -a "$demo/mnt/main/latest" "$1"; }

# The sums that must always be equal in pgbench, and the number of transactions.
sums() {
    query "$1" "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)
                   AND (SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)"
}
transactions() { query "$1" 'SELECT count(*) FROM pgbench_history'; }

check_copy() { [ "$(sums "$1")" = t ] || { say "The balances in $1 do not agree" && return 1; }; }

# Nothing is copied. The output ends with the line for psql.
make_clone() { barmanfs clone create main test1 --start --bindir "$bin" | tee "$demo/clone"; }

clone_query() {
    local port
    port=$(sed -n 's/.*psql -h [^ ]* -p \([0-9]*\).*/\1/p' "$demo/clone")
    as_user "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -h /tmp -p "$port" -U postgres -d postgres -c "$1"
}

ruin_clone() {
    clone_query 'TRUNCATE pgbench_accounts; DROP TABLE pgbench_history; CHECKPOINT'
    [ "$(query "$demo/primary" 'SELECT count(*) FROM pgbench_accounts')" = $((scale * 100000)) ]
}

# The last transaction is in a segment that is not full yet: end it, and wait until it is archived.
end_segment() {
    local segment tries
    segment=$(query "$demo/primary" 'SELECT pg_walfile_name(pg_switch_wal())')
    for ((tries = 0; tries < 300; tries++)); do
        as_user test ! -e "$demo/mnt/main/wal/$segment" || return 0
        sleep 0.1
    done
    say "Segment $segment does not appear in $demo/mnt/main/wal" && return 1
}

# A copy ends recovery at its backup's end. With these lines after the others it continues to the end of the archive.
recover_to_the_end() {
    copy_latest "$1"
    local command
    command=$(as_user cat "$demo/mnt/main/info/restore_command" | grep -v '^#' | head -1)
    as_user tee -a "$1/postgresql.auto.conf" >/dev/null <<EOF
restore_command = '${command//\'/\'\'}'
recovery_target = ''
recovery_target_timeline = 'latest'
EOF
    server_start "$1"
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        [ "$(query "$1" 'SELECT pg_is_in_recovery()')" = t ] || return 0
        sleep 0.1
    done
    say "Recovery did not end" && return 1
}

same_transactions() {
    local there here
    there=$(transactions "$demo/primary") here=$(transactions "$demo/recovered")
    say "The server has $there transactions, the recovered copy $here"
    [ "$there" = "$here" ]
}

# show COMMAND...: the line that a person would type, and the beginning of its output.
show() {
    local shown="$*"
    printf '\n%s    $ %s%s\n' "$dim" "${shown#as_user }" "$plain"
    "$@" 2>&1 | sed -n '1,12s/^/    /p'
}

need_rust
say "${bold}barmanfs: from a running PostgreSQL to a recovered copy${plain}"
say
step "Install what is missing" install_what_is_missing
newest=$(installed_postgres | tail -1)
bin=${newest#*=}
user=$(database_user)
need_space "${TMPDIR:-/tmp}" $((scale * 100 + 1000))
step "Build barmanfs" build

demo=$(mktemp -d "${TMPDIR:-/tmp}/barmanfs-demo.XXXXXX")
chmod 755 "$demo"
[ "$(id -u)" != 0 ] || chown "$user" "$demo"
# A copy of the program: the database user may be unable to read this directory.
install -m 755 "$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/barmanfs" "$demo/barmanfs"

step "Start a private PostgreSQL ${newest%%=*} that archives its WAL with barmanfs" make_server
step "Fill it with pgbench ($((scale * 15)) MB)" fill
start_load
step "Back it up while pgbench runs" take_backup
step "Back it up again: only what changed is stored" take_backup
show barmanfs list-backups main
say
step "Mount the repository" mount_backups
show as_user ls "$demo/mnt/main"
say
step "Copy the latest backup: cp -a mnt/main/latest copy" copy_latest "$demo/copy"
step "Start the copy: pg_ctl start, no other step" server_start "$demo/copy"
step "Its balances agree" check_copy "$demo/copy"
server_stop "$demo/copy" fast
step "A server on a clone: barmanfs clone create main test1 --start" make_clone
step "Ruin the clone; the server is as before" ruin_clone
show barmanfs clone list main
say
step "Drop the clone" barmanfs clone destroy main test1 --stop
stop_load
step "Stop pgbench; its last transaction goes to the archive" end_segment
step "Recover another copy through restore_command, to the end" recover_to_the_end "$demo/recovered"
step "It has every transaction the server has" same_transactions
step "Its balances agree" check_copy "$demo/recovered"
say
say "    The server has $(transactions "$demo/primary") transactions, the recovered copy $(transactions "$demo/recovered")"
show barmanfs stats
say
step "Verify everything in the repository" barmanfs verify
step "Unmount" barmanfs umount "$demo/mnt"
say
say "${green}Done in $(seconds_since "$began_ms").${plain} Everything was in $demo and is removed now"
