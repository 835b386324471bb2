# shellcheck shell=bash
# Programs of another release of Debian, which need a newer libc than this machine may have. They get a private root
# directory and are started through that root's own ld.so. The mirror is the one that this machine already uses.
# Sourced after say.sh and machine.sh.

# debian_mirror: prints it.
debian_mirror() {
    # shellcheck disable=SC2016 # apt replaces them
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT) $(RELEASE)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $3 == "main" && $4 !~ /-/ { print $1; exit }'
}

# download_debian DIRECTORY SUITES PACKAGE NAMES: the package, its libraries, and those of its dependencies whose names are
# NAMES, an extended regular expression; all unpacked under DIRECTORY/root. DIRECTORY/preferences is apt's, if it exists.
download_debian() {
    local work=$1 suites=$2 mirror packages deb keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if ! have apt-get || ! have dpkg-deb || [ ! -r "$keyring" ]; then
        say "$3 is taken from Debian's packages"
        return 1
    fi
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || { say "No Debian mirror among this machine's apt sources"; return 1; }
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "$mirror" "$suites" "$keyring" >"$work/suite.sources"
    mkdir -p "$work"/{lists/partial,archives/partial,debs,root}
    : >"$work/status"
    local options=(-q -o "Dir::Etc::sourcelist=$work/suite.sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::Etc::preferences=$work/preferences" -o Dir::Etc::preferencesparts=/dev/null
        -o "Dir::State=$work" -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status"
        -o "Dir::Cache=$work" -o "Dir::Cache::archives=$work/archives" -o "APT::Sandbox::User=$(id -un)")
    apt-get "${options[@]}" update || return 1
    # Of all the packages of an installation only the libraries are needed, without LLVM.
    packages=$(apt-get "${options[@]}" install -y --no-install-recommends --print-uris "$3" |
        awk '/^.[a-z]+:/ { sub(/_.*/, "", $2); print $2 }' |
        grep -E "^(lib.*|$4)\$" | grep -vE '^lib(perl|llvm|z3|.*-perl$|c-l10n|c-bin)')
    [ -n "$packages" ] || return 1
    # shellcheck disable=SC2086 # one word per package
    (cd "$work/debs" && apt-get "${options[@]}" download $packages) || return 1
    for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root" || return 1; done
    rm -rf "$work"/{lists,archives,debs,status,preferences,*.bin}
}

# wrap_program FILE ROOT PROGRAM: makes FILE, which starts PROGRAM of the root directory ROOT.
wrap_program() {
    cat >"$1" <<EOS
#!/bin/sh
exec $2/usr/lib64/ld-linux-x86-64.so.2 --argv0 "\$0" \\
    --library-path $2/usr/lib/x86_64-linux-gnu:$2/lib/x86_64-linux-gnu \\
    $3 "\$@"
EOS
    chmod 755 "$1"
}

# get_pgbackrest: one that stores files by blocks (2.46 and newer), and knows the newest PostgreSQL. Prints its path.
get_pgbackrest() {
    local cache work final
    cache=$(cache_directory)
    final=$cache/pgbackrest
    if [ ! -x "$final/pgbackrest" ]; then
        mkdir -p "$cache"
        work=$(mktemp -d "$cache/pgbackrest.XXXXXX")
        if ! download_debian "$work" forky pgbackrest pgbackrest >&2 ||
            ! wrap_program "$work/pgbackrest" "$final/root" "$final/root/usr/bin/pgbackrest"; then
            rm -rf "$work"
            return 1
        fi
        chmod -R a+rX "$work"
        rm -rf "$final"
        mv -T "$work" "$final"
    fi
    "$final/pgbackrest" version >&2 || return 1
    say "$final/pgbackrest"
}
