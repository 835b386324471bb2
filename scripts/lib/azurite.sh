# shellcheck shell=bash
# Microsoft's own emulator of Azure's store of blobs, from npm. Everything is in memory and on one port of this host.
# Sourced after say.sh, machine.sh and ceph.sh.

# get_azurite: installs it, if it is missing. Prints the path of its program.
get_azurite() {
    local cache work
    cache=$(cache_directory)
    if [ ! -x "$cache/azurite/node_modules/.bin/azurite-blob" ]; then
        { have node && have npm; } || { can_install && install_packages nodejs npm >&2; } || return 1
        mkdir -p "$cache"
        work=$(mktemp -d "$cache/azurite.XXXXXX")
        if ! npm install --prefix "$work" --silent --no-audit --no-fund --ignore-scripts --omit=optional azurite >&2; then
            rm -rf "$work"
            return 1
        fi
        chmod 755 "$work"
        rm -rf "$cache/azurite"
        mv -T "$work" "$cache/azurite"
    fi
    say "$cache/azurite/node_modules/.bin/azurite-blob"
}

# start_azurite DIRECTORY: the emulator, which stop_azurite stops. Sets azurite_endpoint.
start_azurite() {
    local work=$1 program port
    program=$(get_azurite) || return 1
    port=$(free_ports 1) || return 1
    azurite_endpoint=http://127.0.0.1:$port
    (cd "$work" && exec "$program" --silent --inMemoryPersistence --skipApiVersionCheck --disableTelemetry \
        --blobPort "$port") >"$work/azurite.log" 2>&1 &
    say $! >"$work/azurite.pid"
    answers "$port"
}

# stop_azurite DIRECTORY: stops what start_azurite has started there.
stop_azurite() {
    [ ! -s "$1/azurite.pid" ] || kill "$(cat "$1/azurite.pid")" 2>/dev/null || true
}

# make_azurite_container NAME: an empty container in the emulator that start_azurite has started. Its account and its key are
# those of every emulator, known to everybody.
make_azurite_container() {
    node - "$azurite_endpoint" "$1" >&2 <<'EOS'
const [, , endpoint, name] = process.argv;
const account = 'devstoreaccount1';
const key = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const headers = { 'x-ms-date': new Date().toUTCString(), 'x-ms-version': '2021-08-06' };
const lines = Object.keys(headers).sort().map((header) => `${header}:${headers[header]}\n`).join('');
const text = `PUT${'\n'.repeat(12)}${lines}/${account}/${account}/${name}\nrestype:container`;
const hmac = require('crypto').createHmac('sha256', Buffer.from(key, 'base64'));
headers.Authorization = `SharedKey ${account}:${hmac.update(text, 'utf8').digest('base64')}`;
fetch(`${endpoint}/${account}/${name}?restype=container`, { method: 'PUT', headers })
    .then((answer) => { if (!answer.ok) throw new Error(`Azurite says ${answer.status}`); })
    .catch((error) => { console.error(String(error)); process.exit(1); });
EOS
}
