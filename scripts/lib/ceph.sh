# shellcheck shell=bash
# An object store for tests: Ceph's RADOS gateway with one monitor and one OSD, from Debian's packages. Everything is in one
# temporary directory and on ports of this host alone. Sourced after say.sh and machine.sh.

# have_ceph: whether its programs are here, or can be installed.
have_ceph() {
    if have radosgw && have ceph-mon && have ceph-osd && have ceph; then return; fi
    can_install && (install_packages radosgw ceph-osd ceph-mon ceph-common >&2)
}

# free_ports COUNT: prints the first of so many ports that follow each other and that nothing listens on. They are below
# those that the kernel hands out, so no connection takes one meanwhile.
free_ports() {
    local first port taken
    taken=$(awk 'NR > 1 { split($2, a, ":"); print a[2] }' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
    for _ in $(seq 100); do
        first=$((20000 + RANDOM % 10000))
        for port in $(seq "$first" $((first + $1 - 1))); do
            grep -q "$(printf '^%04X$' "$port")" <<<"$taken" && continue 2
        done
        say "$first"
        return
    done
    return 1
}

# ceph_configuration DIRECTORY PORT FSID: what all of its programs read.
ceph_configuration() {
    cat <<EOF
[global]
fsid = $3
mon_host = v2:127.0.0.1:$2
mon_initial_members = a
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = $1/keyring
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = $(($2 + 10))
ms_bind_port_max = $(($2 + 19))
ms_bind_ipv6 = false
run_dir = $1/run
admin_socket = $1/run/\$name.asok
pid_file = $1/run/\$name.pid
log_file = $1/log/\$name.log
mon_data = $1/mon
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_cluster_log_file = $1/log/cluster.log
osd_data = $1/osd
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 939524096
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:$(($2 + 5)) tcp_nodelay=1
rgw_data = $1/rgw
rgw_dynamic_resharding = false
rgw_thread_pool_size = 32
EOF
}

# make_ceph DIRECTORY PORT: configuration, keys and the monitor's map.
make_ceph() {
    local work=$1 fsid
    fsid=$(cat /proc/sys/kernel/random/uuid)
    mkdir -p "$work"/{run,log,mon,osd,rgw}
    ceph_configuration "$work" "$2" "$fsid" >"$work/ceph.conf"
    monmaptool --create --addv a "[v2:127.0.0.1:$2]" --fsid "$fsid" "$work/monmap" &&
        ceph-authtool --create-keyring "$work/keyring" --gen-key -n mon. --cap mon 'allow *' &&
        ceph-authtool "$work/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' &&
        ceph-authtool "$work/keyring" --gen-key -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx' &&
        ceph-mon -c "$work/ceph.conf" --mkfs -i a --monmap "$work/monmap" --keyring "$work/keyring"
}

# start_osd DIRECTORY: makes it and starts it.
start_osd() {
    local work=$1 uuid id
    local ceph=(ceph -c "$work/ceph.conf" --connect-timeout 20)
    uuid=$(cat /proc/sys/kernel/random/uuid)
    id=$("${ceph[@]}" osd new "$uuid") || return 1
    ceph-authtool "$work/keyring" --gen-key -n "osd.$id" --cap mon 'allow profile osd' --cap osd 'allow *' &&
        "${ceph[@]}" auth import -i "$work/keyring" &&
        ceph-osd -c "$work/ceph.conf" -i "$id" --mkfs --osd-uuid "$uuid" &&
        "${ceph[@]}" osd crush add "osd.$id" 1.0 root=default &&
        ceph-osd -c "$work/ceph.conf" -i "$id"
}

# answers PORT: waits until something answers HTTP there.
answers() {
    for _ in $(seq 600); do
        # shellcheck disable=SC2016 # expanded by the shell inside
        if timeout 5 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && read -r -u 3 line &&
            [ -n "$line" ]' _ "$1" 2>/dev/null; then
            return 0
        fi
        sleep 0.2
    done
    return 1
}

# make_rgw_user DIRECTORY NAME KEY: a user with the secret key of all of them.
make_rgw_user() {
    radosgw-admin -c "$1/ceph.conf" user create --uid="$2" --display-name="$2" --access-key="$3" --secret-key="$rgw_secret_key"
}

# start_rgw DIRECTORY: a gateway in DIRECTORY, which stop_rgw stops. Sets rgw_endpoint, and rgw_access_key and
# rgw_secret_key of a user who may make buckets. Users with the keys barmanfsarchiver, barmanfssweeper and barmanfsreader may
# do nothing until a policy of a bucket says otherwise.
start_rgw() {
    local work=$1 port role
    port=$(free_ports 20) || return 1
    rgw_endpoint=http://127.0.0.1:$((port + 5))
    # Of this store alone, which ends with the tests.
    rgw_access_key=barmanfstest rgw_secret_key=barmanfs-test-of-packs
    {
        make_ceph "$work" "$port" && ceph-mon -c "$work/ceph.conf" -i a && start_osd "$work" &&
            radosgw -c "$work/ceph.conf" -n client.rgw.a && answers $((port + 5)) &&
            make_rgw_user "$work" test "$rgw_access_key" &&
            for role in archiver sweeper reader; do make_rgw_user "$work" $role "barmanfs$role" || return 1; done
    } >"$work/start.log" 2>&1
}

# stop_rgw DIRECTORY: stops what start_rgw has started there, and removes it.
stop_rgw() {
    local file pids=()
    for file in "$1"/run/*.pid; do
        [ ! -s "$file" ] || pids+=("$(cat "$file")")
    done
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    for _ in $(seq 100); do
        # shellcheck disable=SC2015
        [ ${#pids[@]} != 0 ] && kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.1
    done
    [ ${#pids[@]} = 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
    rm -rf "$1"
}

# put_rgw PATH OPTION...: a PUT to the gateway that start_rgw has started, with options of curl.
put_rgw() {
    have curl || install_packages curl >&2
    # curl signs the request; the key is known to everybody, see start_rgw.
    curl -sS -f -X PUT --aws-sigv4 aws:amz:us-east-1:s3 -u "$rgw_access_key:$rgw_secret_key" \
        -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "${@:2}" "$rgw_endpoint/$1" >&2
}

# make_rgw_bucket NAME: an empty bucket.
make_rgw_bucket() { put_rgw "$1"; }

# make_rgw_locked_bucket NAME: an empty bucket that keeps versions and locks each for a day.
make_rgw_locked_bucket() {
    put_rgw "$1" -H 'x-amz-bucket-object-lock-enabled: true' &&
        put_rgw "$1?object-lock=" --data '<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention>
</Rule></ObjectLockConfiguration>'
}
