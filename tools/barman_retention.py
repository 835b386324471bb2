#!/usr/bin/env python3
"""Asks Barman's retention policies about random catalogues, and writes its answers for a test.

The test `barman_judges_the_same` of catalog/src/retention/state compares them with what barmanfs says. This program is only
needed to make other catalogues: `pip install barman==3.19.1`, then

    tools/barman_retention.py 5000 > catalog/src/retention/state/barman_3.19.1.txt

A line has: the policy, the minimum redundancy, the hour of the question, and for each backup, the oldest first, the hours of its
begin and end, D for DONE or F for FAILED, the target of keep (f, s or -), and Barman's answer.
"""

import random
import sys
from datetime import datetime, timedelta, timezone

from barman import output  # noqa: F401  Barman cannot be imported in another order
from barman import retention_policies
from barman.infofile import BackupInfo

EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)
UNITS = ["DAYS", "WEEKS", "MONTHS"]
ANSWERS = {
    BackupInfo.VALID: "V",
    BackupInfo.OBSOLETE: "O",
    BackupInfo.POTENTIALLY_OBSOLETE: "*",
    BackupInfo.KEEP_FULL: "F",
    BackupInfo.KEEP_STANDALONE: "S",
    BackupInfo.NONE: "-",
}


class Backup:
    """What the policies look at."""

    is_incremental = False
    has_children = False

    def __init__(self, begin, end, status):
        self.backup_id = (EPOCH + timedelta(hours=begin)).strftime("%Y%m%dT%H%M%S")
        self.end_time = EPOCH + timedelta(hours=end)
        self.status = status


class Server:
    """What the policies ask."""

    def __init__(self, minimum_redundancy, backups, keeps):
        self.config = self
        self.name = "main"
        self.minimum_redundancy = minimum_redundancy
        self.backup_manager = self
        self.backups = {backup.backup_id: backup for backup in backups}
        self.keeps = keeps

    def get_available_backups(self, _):
        return self.backups

    def get_keep_target(self, backup_id):
        return self.keeps.get(backup_id)


def clock_at(hour):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return EPOCH + timedelta(hours=hour)

    return Clock


def catalogue(chance):
    """A policy, and backups as a server may have them."""
    hour, backups, keeps = 0, [], {}
    for _ in range(chance.randrange(13)):
        hour += chance.choice([1, 12, 24, 24, 24, 24 * 7, 24 * 30])
        status = BackupInfo.FAILED if chance.random() < 0.15 else BackupInfo.DONE
        begin, hour = hour, hour + chance.choice([0, 1, 5])
        backup = Backup(begin, hour, status)
        backups.append((begin, hour, backup))
        if chance.random() < 0.15:
            keeps[backup.backup_id] = chance.choice(["full", "standalone"])
    now = hour + chance.choice([0, 1, 24, 24 * 10, 24 * 100])
    if chance.random() < 0.4:
        policy = f"REDUNDANCY {chance.randrange(1, 8)}"
    else:
        policy = f"RECOVERY WINDOW OF {chance.randrange(1, 12)} {chance.choice(UNITS)}"
    return policy, chance.choice([0, 0, 1, 2, 4]), now, backups, keeps


def answer(policy, minimum, now, backups, keeps):
    retention_policies.datetime = clock_at(now)
    server = Server(minimum, [backup for _, _, backup in backups], keeps)
    asked = retention_policies.RetentionPolicyFactory.create("retention_policy", policy, server=server)
    report = asked.report()
    fields = [policy, str(minimum), str(now)]
    for begin, end, backup in backups:
        status = "D" if backup.status == BackupInfo.DONE else "F"
        keep = keeps.get(backup.backup_id, "-")[0]
        fields.append(f"{begin} {end} {status} {keep} {ANSWERS[report[backup.backup_id]]}")
    return "\t".join(fields)


def main():
    chance = random.Random(3191)
    for _ in range(int(sys.argv[1])):
        print(answer(*catalogue(chance)))


if __name__ == "__main__":
    main()
