#!/usr/bin/env bash
# Clones under long random use: against ext4 in step, by fsx and pjdfstest (got from crates.io), and by servers that are
# killed and lose power. scripts/test.sh does the same for seconds, this script for minutes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

usage() {
    cat <<'EOF'
Usage: scripts/torture.sh [SECONDS]

  SECONDS   how long each test goes on; 120 otherwise

Needs root, /dev/fuse, loop devices, mkfs.ext4, Rust, and what scripts/test.sh needs.
EOF
}

case ${1:-} in
-h | --help) usage && exit 0 ;;
'' | [0-9]*) ;;
*) usage >&2 && exit 2 ;;
esac
export BARMANFS_TEST_SECONDS=${1:-120}
export BARMANFS_TEST_OPERATIONS=${BARMANFS_TEST_OPERATIONS:-50000}
export BARMANFS_TEST_TOOLS=$root/target/torture/bin

for tool in fsx pjdfstest; do
    [ -x "$BARMANFS_TEST_TOOLS/$tool" ] || cargo install --locked --root target/torture "$tool"
done
cargo test -p barmanfs-fs --test tools -- --nocapture
cargo test -p barmanfs-fs --test differential -- --nocapture
scripts/test.sh torture
scripts/test.sh clone_servers
