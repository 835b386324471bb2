#!/usr/bin/env python3
"""Makes histories of pages for barmanfs-deltas: a PostgreSQL server of its own, rounds of changes, and after each round every window of
128 KiB that has changed, as HISTORIES/<relation>/<file>.<window>/<round>.

The changes of a round: pgbench (random rows, an appended history), an append-only log, updates of the same rows in place, updates of
random rows with an index, jsonb documents, and a table that VACUUM FULL rewrites now and then. VACUUM runs every few rounds. Run it as
root; the server runs as postgres.
"""

import argparse
import hashlib
import pathlib
import random
import shutil
import subprocess

WINDOW = 128 * 1024
RELATIONS = """pgbench_accounts pgbench_accounts_pkey pgbench_tellers pgbench_branches pgbench_history log log_pkey same same_pkey scattered
scattered_pkey scattered_k_idx docs docs_pkey rewritten rewritten_pkey""".split()
TABLES = """
create table log(id bigserial primary key, at timestamptz default now(), who text, what text);
create table same(id int primary key, n int default 0, pad text) with (fillfactor = 60);
insert into same select i, 0, repeat(md5(i::text), 3) from generate_series(1, 60000) i;
create table scattered(id int primary key, n int default 0, k int, pad text);
insert into scattered select i, 0, hashint4(i) & 65535, md5(i::text) || md5((i * 7)::text) from generate_series(1, 100000) i;
create index on scattered(k);
create table docs(id int primary key, d jsonb);
insert into docs select i, jsonb_build_object('name', md5(i::text), 'n', i, 'tags', jsonb_build_array(md5((i % 10)::text), i % 7),
    'text', repeat(md5((i % 100)::text), 4)) from generate_series(1, 40000) i;
create table rewritten(id int primary key, n int default 0, pad text);
insert into rewritten select i, 0, md5(i::text) from generate_series(1, 60000) i;
"""


class Server:
    def __init__(self, bindir, directory):
        self.bindir, self.directory = bindir, directory
        shutil.chown(directory, "postgres")
        self.run("initdb", "-D", directory / "data", "-U", "postgres", "-A", "trust", as_postgres=True)
        settings = f"""listen_addresses = ''\nunix_socket_directories = '{directory}'\nfsync = off\nautovacuum = off
checkpoint_timeout = '1h'\nmax_wal_size = '8GB'\n"""
        with open(directory / "data/postgresql.auto.conf", "a") as file:
            file.write(settings)
        self.run("pg_ctl", "-D", directory / "data", "-l", directory / "log", "-w", "start", as_postgres=True)

    def run(self, program, *arguments, as_postgres=False):
        user = ["runuser", "-u", "postgres", "--"] if as_postgres else []
        command = user + [f"{self.bindir}/{program}", *map(str, arguments)]
        # Not captured where a server inherits the pipe: it would never end.
        pipe = subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE
        return subprocess.run(command, stdout=pipe, text=True, check=True).stdout

    def sql(self, text):
        return self.run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.directory, "-U", "postgres", "-c", text).strip()

    def pgbench(self, *arguments):
        self.run("pgbench", "-n", "-h", self.directory, "-U", "postgres", *arguments, "postgres")

    def stop(self):
        self.run("pg_ctl", "-D", self.directory / "data", "-m", "fast", "stop", as_postgres=True)


def change(server, number):
    server.pgbench("-t", "150")
    server.sql("insert into log(who, what) select md5(i::text), repeat('x', i % 40) || md5(random()::text) from generate_series(1, 400) i")
    server.sql("update same set n = n + 1 where id % 600 = 7")
    server.sql('update scattered set n = n + 1 where id in (select (random() * 100000)::int from generate_series(1, 60))')
    server.sql(f"update docs set d = jsonb_set(d, '{{n}}', to_jsonb({number})) where id % 400 = {random.randrange(40) * 10}")
    server.sql(f"update rewritten set n = n + 1 where id % 300 = {random.randrange(300)}")
    if number % 5 == 0:
        for table in ("same", "scattered", "docs", "rewritten"):
            server.sql(f"vacuum {table}")
    if number % 30 == 0:
        server.sql("vacuum full rewritten")


def keep(server, histories, known, number):
    server.sql("checkpoint")
    for relation in RELATIONS:
        path = server.directory / "data" / server.sql(f"select pg_relation_filepath('\"{relation}\"')")
        with open(path, "rb") as file:
            for window, content in enumerate(iter(lambda: file.read(WINDOW), b"")):
                key, digest = (relation, path.name, window), hashlib.blake2b(content, digest_size=16).digest()
                if known.get(key) != digest and any(content):
                    known[key] = digest
                    target = histories / relation / f"{path.name}.{window:05}"
                    target.mkdir(parents=True, exist_ok=True)
                    (target / f"{number:05}").write_bytes(content)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("histories", type=pathlib.Path, help="a directory that does not exist")
    parser.add_argument("--bindir", default="/usr/lib/postgresql/17/bin")
    parser.add_argument("--rounds", type=int, default=160)
    options = parser.parse_args()
    options.histories.mkdir()
    place = options.histories.with_name(options.histories.name + ".server")
    place.mkdir()
    random.seed(5)
    server = Server(options.bindir, place)
    try:
        server.pgbench("-i", "-s", "3", "-q")
        server.sql(TABLES)
        known = {}
        keep(server, options.histories, known, 0)
        for number in range(1, options.rounds + 1):
            change(server, number)
            keep(server, options.histories, known, number)
    finally:
        server.stop()
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
