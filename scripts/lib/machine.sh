# shellcheck shell=bash
# The requirements of the machine, and how to install them. Sourced after say.sh.

# The directory for downloaded PostgreSQL versions and Python packages. Root's servers run as another user, who must be
# able to read it.
cache_directory() {
    if [ "$(id -u)" = 0 ]; then
        say "${BARMANFS_TEST_CACHE:-/var/cache/barmanfs-test}"
    else
        say "${BARMANFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/barmanfs-test}"
    fi
}

have() { command -v "$1" >/dev/null 2>&1; }

# Succeeds if packages can be installed without a password.
can_install() {
    have apt-get || return 1
    [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_is_fresh=''

# install_packages PACKAGE...: without recommendations, without questions.
install_packages() {
    if ! can_install; then
        stop "These packages are missing and cannot be installed from here: $*" \
            "On Debian or Ubuntu, as root:  apt-get install $*" \
            "Elsewhere: install what provides the same programs, then run this again"
    fi
    if [ -z "$apt_is_fresh" ]; then
        as_root apt-get update -q || warn "apt-get update failed; trying with the package lists there are"
        apt_is_fresh=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" ||
        stop "apt-get could not install: $*" "See its message above; then run this again"
}

# $root is the top of this repository.
need_rust() {
    if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
    local wanted found
    # shellcheck disable=SC2154 # the caller's
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)
    if ! have cargo; then
        stop "Rust is not installed; barmanfs needs $wanted or newer" \
            "Get it from https://rustup.rs, then run this again"
    fi
    found=$(cargo --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -1)" != "$wanted" ]; then
        stop "Rust $found is too old; barmanfs needs $wanted or newer" "With rustup:  rustup update stable"
    fi
}

# A C compiler, for the SQLite and zstd that are built in, and fusermount3.
need_build_and_mount_tools() {
    local missing=()
    have cc || missing+=(gcc libc6-dev)
    have fusermount3 || missing+=(fuse3)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki ] || missing+=(ca-certificates)
    if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
    [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    if [ ! -c /dev/fuse ]; then
        stop "There is no /dev/fuse, so nothing can be mounted here" \
            "On a real or virtual machine:  modprobe fuse" \
            "In a container: start it with  --device /dev/fuse --cap-add SYS_ADMIN"
    fi
    # udev gives the device this mode if fuse3 is installed; a container may have no udev.
    if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
        as_root chmod 666 /dev/fuse || stop "Only root may mount here: /dev/fuse is closed" "As root:  chmod 666 /dev/fuse"
        say "Opened /dev/fuse to all users, as udev does where fuse3 is installed"
    fi
}

# python_with DIRECTORY PACKAGE...: a Python environment below the cache directory, with these packages from PyPI. A module with
# another name than its package is written before it: MODULE:PACKAGE. Prints the path of its python.
python_with() {
    local cache directory work
    cache=$(cache_directory)
    directory=$cache/$1
    shift
    if ! "$directory/bin/python" -c "import $(IFS=, && say "${*%%:*}")" 2>/dev/null; then
        # Debian's Python comes without the module that makes environments.
        python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3 python3-venv >&2
        mkdir -p "$cache"
        work=$(mktemp -d "$directory.XXXXXX")
        # Renamed when it is complete, because another run may be making it too.
        if ! python3 -m venv "$work" || ! "$work/bin/python" -m pip install -q --disable-pip-version-check "${@#*:}" >&2; then
            rm -rf "$work"
            return 1
        fi
        chmod 755 "$work"
        rm -rf "$directory"
        mv -T "$work" "$directory"
        # Its programs begin with the path of its python.
        find "$directory/bin" -type f -exec sed -i "1s|^#!$work/|#!$directory/|" {} +
    fi
    say "$directory/bin/python"
}

# promtool, which knows Prometheus' rules for metrics. It is in the package of the server, of which nothing else is needed.
get_promtool() {
    local cache work
    cache=$(cache_directory)
    if [ ! -x "$cache/promtool/promtool" ]; then
        have dpkg-deb || { say "promtool is taken from Debian's package of Prometheus"; return 1; }
        mkdir -p "$cache"
        work=$(mktemp -d "$cache/promtool.XXXXXX")
        if ! (cd "$work" && apt-get -q -o "APT::Sandbox::User=$(id -un)" download prometheus &&
            dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool &&
            mv usr/bin/promtool . && rm -r usr prometheus_*.deb); then
            rm -rf "$work"
            return 1
        fi
        chmod 755 "$work"
        rm -rf "$cache/promtool"
        mv -T "$work" "$cache/promtool"
    fi
    PATH=$PATH:$cache/promtool
}

# need_space DIRECTORY MEGABYTES
need_space() {
    local free_mb
    free_mb=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    if [ "${free_mb:-0}" -lt "$2" ]; then
        stop "$1 has $free_mb MB free; $2 MB are needed" "Free some, or set TMPDIR to a directory with more space"
    fi
}

# The user for PostgreSQL, which refuses to run as root.
database_user() {
    if [ "$(id -u)" != 0 ]; then
        id -un
    elif id postgres >/dev/null 2>&1; then
        say postgres
    else
        say nobody
    fi
}

# in_memory COMMAND...: runs it with its temporary files in memory, where there is enough of it. The mount is the
# command's own: nobody else sees it, and the memory is free again when the last process has ended. Tests create and
# remove whole data directories, and ext4 then searches long for an inode that was not freed in the last seconds.
in_memory() {
    local available_kb directory code=0
    available_kb=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
    # What is to be kept, or large, belongs on a disk.
    if [ -n "${BARMANFS_TEST_KEEP:-}${BARMANFS_TEST_SCALE:-}" ] || [ "$(id -u)" != 0 ] ||
        [ "${available_kb:-0}" -lt $((8 * 1024 * 1024)) ] || ! unshare --mount true 2>/dev/null; then
        "$@"
        return
    fi
    # Short, because of the paths of sockets below it.
    directory=$(mktemp -d /tmp/m.XXX)
    # shellcheck disable=SC2016 # expanded by the shell inside
    unshare --mount sh -c '
        directory=$1 size=$2
        shift 2
        if mount -t tmpfs -o "mode=1777,size=$size" barmanfs-test "$directory"; then export TMPDIR="$directory"; fi
        exec "$@"' in_memory "$directory" "$((available_kb / 2))k" "$@" || code=$?
    rmdir "$directory"
    return "$code"
}
