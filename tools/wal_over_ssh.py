#!/usr/bin/env python3
"""Compares replay of WAL that 'wal-restore -p' fetches over a slow network with replay of local files.

Root runs this on Linux with iproute2 and openssh-server. The other host is a network namespace with an sshd of its own;
'tc netem' delays each way. Where the kernel has no netem, a relay in this process delays instead (it knows no slow start
of TCP). The same copy of a server recovers from plain files with cp, and over ssh, in turn. The times
are those of PostgreSQL's log, from the first record to the restore point, so starting the server does not count. The third
row is the same with an ssh that keeps its connection (ControlMaster in ssh_config).
"""

import argparse
import datetime
import os
import pathlib
import queue
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

NAMESPACE = "barmanfs-bench"
NEAR, FAR = "bfs-near", "bfs-far"
HERE, THERE = "10.198.7.1", "10.198.7.2"
POINT = "end_of_bench"


def run(words, **options):
    """Runs a command to its end."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{words} has failed:\n{done.stdout}{done.stderr}")
    return done.stdout


class Network:
    """A namespace behind a pair of devices that delay."""

    def __init__(self, delay_ms):
        self.close()
        run(["ip", "netns", "add", NAMESPACE])
        run(["ip", "link", "add", NEAR, "type", "veth", "peer", "name", FAR, "netns", NAMESPACE])
        for prefix, device, address in [([], NEAR, HERE), (["-n", NAMESPACE], FAR, THERE)]:
            run(["ip", *prefix, "addr", "add", f"{address}/30", "dev", device])
            run(["ip", *prefix, "link", "set", device, "up"])
        # The default limit of packets under way would limit the rate, too.
        netem = ["root", "netem", "delay", f"{delay_ms}ms", "limit", "200000"]
        run(["tc", "qdisc", "add", "dev", NEAR, *netem])
        run(["tc", "-n", NAMESPACE, "qdisc", "add", "dev", FAR, *netem])

    def close(self):
        subprocess.run(["ip", "netns", "delete", NAMESPACE], capture_output=True, check=False)


class Relay:
    """Passes connections on to an sshd on this host, and delays both ways."""

    def __init__(self, delay_ms, port):
        self.delay, self.port = delay_ms / 1000, port
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            threading.Thread(target=self.connect, args=[near], daemon=True).start()

    def connect(self, near):
        # The handshake of TCP.
        time.sleep(2 * self.delay)
        far = socket.create_connection(("127.0.0.1", self.port))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((near, far), (far, near)):
            waiting = queue.Queue(256)
            threading.Thread(target=self.receive, args=[source, waiting], daemon=True).start()
            threading.Thread(target=self.send, args=[sink, waiting], daemon=True).start()

    def receive(self, source, waiting):
        data = b"x"
        while data:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            waiting.put((time.monotonic() + self.delay, data))

    def send(self, sink, waiting):
        while True:
            due, data = waiting.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
            except OSError:
                if not data:
                    return


class Sshd:
    """An sshd on the other host, and an 'ssh' in client/ that reaches it."""

    def __init__(self, root, user, delay_ms=None):
        here = "127.0.0.1" if delay_ms is not None else THERE
        relay = Relay(delay_ms, 2222) if delay_ms is not None else None
        port = relay.listener.getsockname()[1] if relay else 2222
        self.root = root / "sshd"
        (self.root / "client").mkdir(parents=True)
        for key in ("host", "user"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / key])
        shutil.copy(self.root / "user.pub", self.root / "authorized_keys")
        (self.root / "known_hosts").write_text("* " + (self.root / "host.pub").read_text())
        (self.root / "sshd_config").write_text(
            f"Port 2222\nListenAddress {here}\nHostKey {self.root}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {self.root}/authorized_keys\nMaxStartups 100\n"
        )
        (self.root / "ssh_config").write_text(
            f"Host *\nHostName {here}\nPort {port}\nUser {user}\nIdentityFile {self.root}/user\nIdentitiesOnly yes\n"
            f"UserKnownHostsFile {self.root}/known_hosts\nLogLevel ERROR\n"
        )
        ssh = self.root / "client" / "ssh"
        kept = f"-o ControlMaster=auto -o ControlPersist=60 -o ControlPath={self.root}/%C"
        ssh.write_text(
            f'#!/bin/sh\ntest -z "$KEPT" || set -- {kept} "$@"\nexec /usr/bin/ssh -F {self.root}/ssh_config "$@"\n'
        )
        ssh.chmod(0o755)
        run(["chown", "-R", user, self.root])
        switch = [] if relay else ["ip", "netns", "exec", NAMESPACE]
        switch += ["runuser", "-u", user, "--", "/usr/sbin/sshd"]
        self.daemon = subprocess.Popen([*switch, "-D", "-f", str(self.root / "sshd_config"), "-E", str(self.root / "log")])
        for _ in range(100):
            try:
                socket.create_connection((here, 2222), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit("sshd does not answer: " + (self.root / "log").read_text())

    def close(self):
        self.daemon.terminate()
        self.daemon.wait()


def can_delay():
    """Whether the kernel has netem."""
    run(["ip", "link", "add", NEAR, "type", "veth", "peer", "name", FAR])
    tried = ["tc", "qdisc", "add", "dev", NEAR, "root", "netem", "delay", "1ms"]
    done = subprocess.run(tried, capture_output=True, check=False)
    run(["ip", "link", "delete", NEAR])
    return done.returncode == 0


class Bench:
    def __init__(self, options, root):
        self.options, self.root = options, root
        self.barmanfs, self.config = root / "barmanfs", root / "barmanfs.conf"
        shutil.copy(options.barmanfs, self.barmanfs)
        run(["chown", "-R", options.user, root])
        root.chmod(0o755)

    def as_user(self, words, **options):
        return run(["runuser", "-u", self.options.user, "--", *words], cwd="/", **options)

    def program(self, name):
        return pathlib.Path(self.options.bindir) / name

    def sql(self, text):
        return self.as_user(
            [self.program("psql"), "-XAtqc", text, "-h", self.root, "-p", "54321", "-d", "postgres"]
        ).strip()

    def own(self, *words):
        return self.as_user([self.barmanfs, "-c", self.config, *words])

    def prepare(self):
        """A server, a backup, and the WAL of pgbench behind it: in the repository, and as plain files."""
        data, plain = self.root / "data", self.root / "plain"
        self.as_user(["mkdir", plain])
        self.as_user([self.program("initdb"), "-N", "-D", data, "-A", "trust"])
        self.config.write_text(
            f"[barmanfs]\nrepository = {self.root}/repository\n[main]\n"
            f"conninfo = host={self.root} port=54321 dbname=postgres\n"
            f"streaming_conninfo = host={self.root} port=54321 dbname=postgres\n"
        )
        archive = f"{self.barmanfs} -c {self.config} wal-archive main %p && cp %p {plain}/%f"
        with open(data / "postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write(
                f"archive_mode = on\narchive_command = '{archive}'\nfsync = off\nmax_wal_size = 64GB\n"
                f"checkpoint_timeout = 1d\nautovacuum = off\nshared_buffers = 512MB\n"
                f"full_page_writes = {'off' if self.options.no_page_images else 'on'}\n"
            )
        self.start(data, self.root / "data.log")
        bench = [self.program("pgbench"), "-h", self.root, "-p", "54321", "-n"]
        self.as_user([*bench, "-i", "-q", "-s", str(self.options.scale), "postgres"])
        self.own("backup", "main", "--fast-checkpoint")
        begun = int(self.sql("SELECT pg_current_wal_lsn() - '0/0'").split(".")[0])
        while int(self.sql("SELECT pg_current_wal_lsn() - '0/0'").split(".")[0]) - begun < self.options.segments << 24:
            # The first change of a page behind a checkpoint writes all of it.
            self.sql("CHECKPOINT")
            self.as_user([*bench, "-c", "4", "-t", "2000", "postgres"])
        self.sql(f"SELECT pg_create_restore_point('{POINT}')")
        last = self.sql("SELECT pg_walfile_name(pg_switch_wal())")
        while self.sql(f"SELECT coalesce(last_archived_wal >= '{last}', false) FROM pg_stat_archiver") != "t":
            time.sleep(0.2)
        self.as_user([self.program("pg_ctl"), "-D", data, "-s", "-m", "fast", "stop"])

    def start(self, data, log):
        self.as_user(
            [self.program("pg_ctl"), "-s", "-w", "-t", "600", "-D", data, "-l", log, "-o",
             f"-k {self.root} -p 54321 -c listen_addresses=", "start"]
        )

    def replay(self, name, command):
        """Seconds of one recovery to the restore point."""
        data, log = self.root / name, self.root / f"{name}.log"
        shutil.rmtree(data, ignore_errors=True)
        log.unlink(missing_ok=True)
        self.own("-q", "restore", "main", "auto", data, "--target-name", POINT, "--target-action", "shutdown",
                 "--restore-command", command)
        with open(data / "postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write("fsync = off\n")
        subprocess.run(["sync"], check=True)
        words = [self.program("pg_ctl"), "-s", "-w", "-t", "600", "-D", data, "-l", log, "-o",
                 f"-k {self.root} -p 54322", "start"]
        # It shuts down at its target, which pg_ctl may take for a failure.
        subprocess.run(["runuser", "-u", self.options.user, "--", *map(str, words)], cwd="/", capture_output=True, check=False)
        while (data / "postmaster.pid").exists():
            time.sleep(0.2)
        moments = []
        for words in ("redo starts at", f'recovery stopping at restore point "{POINT}"'):
            found = re.search(rf"^(\S+ \S+) \S+ \[\d+\] LOG:  {words}", log.read_text(), re.MULTILINE)
            if not found:
                sys.exit(f"{name} has not recovered:\n{log.read_text()[-3000:]}")
            moments.append(datetime.datetime.fromisoformat(found[1]))
        return (moments[1] - moments[0]).total_seconds()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--barmanfs", default="target/release/barmanfs", help="a release build")
    parser.add_argument("--bindir", default="", help="PostgreSQL's programs [the newest below /usr/lib/postgresql]")
    parser.add_argument("--user", default="postgres", help="runs the servers")
    parser.add_argument("--delay-ms", type=float, default=10, help="of each way [10]")
    parser.add_argument("--segments", type=int, default=64, help="how many are replayed, at least [64]")
    parser.add_argument("--scale", type=int, default=20, help="of pgbench [20]")
    parser.add_argument("--parallel", type=int, default=4, help="the N of wal-restore -p N [4]")
    parser.add_argument("--no-page-images", action="store_true", help="WAL of changes alone, which takes longer to replay")
    parser.add_argument("--options", default="", help="more options of wal-restore, such as -z")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workdir", default="/var/tmp")
    options = parser.parse_args()
    if not options.bindir:
        versions = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        options.bindir = str(versions[-1]) if versions else ""
    return options


def main():
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("Only root can make a network namespace")
    root = pathlib.Path(tempfile.mkdtemp(prefix="barmanfs-ssh-", dir=options.workdir))
    bench, network, sshd = Bench(options, root), None, None
    try:
        has_netem = can_delay()
        bench.prepare()
        if has_netem:
            network = Network(options.delay_ms)
        else:
            print("This kernel has no netem: a relay delays", flush=True)
        sshd = Sshd(root, options.user, None if has_netem else options.delay_ms)
        over_ssh = (
            f"PATH={root}/sshd/client:$PATH {bench.barmanfs} -c {bench.config} wal-restore -p {options.parallel}"
            f" {options.options} --program {bench.barmanfs} -U {options.user} backup main %f %p"
        )
        commands = {"cp": f"cp {root}/plain/%f %p", "ssh": over_ssh, "kept": f"KEPT=1 {over_ssh}"}
        count = len(list((root / "plain").iterdir()))
        print(f"{count} segments, {options.delay_ms * 2:g} ms round trip, {os.cpu_count()} cores", flush=True)
        times = {name: [] for name in commands}
        for number in range(options.runs):
            for name in sorted(commands, reverse=number % 2 == 1):
                times[name].append(bench.replay(name, commands[name]))
                print(f"run {number + 1}  {name:4} {times[name][-1]:7.2f} s", flush=True)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, median in medians.items():
            print(f"median {name:4} {median:7.2f} s: {median / medians['cp']:.3f}")
    finally:
        for thing in (sshd, network):
            if thing:
                thing.close()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
