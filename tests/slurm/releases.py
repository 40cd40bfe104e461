"""What a cluster has to be told differently from one Slurm release, or MariaDB release, to the next. All of it is here."""

from __future__ import annotations

Release = tuple[int, int]

# On by default since MariaDB 11.6.2 (Debian 13 has 11.8). slurmdbd 26.05 says of it: "not supported by Slurm and will cause slurmdbd
# to fatal when a write conflicts with a concurrent transaction". "loose": a MariaDB that does not know the option only warns.
MARIADB_OPTIONS = ("--loose-innodb-snapshot-isolation=OFF",)


def cgroup_conf(release: Release) -> str:
    """No control groups: they are the machine's, often read-only in a container, and not there at all in a Debian root."""
    if release < (23, 2):
        return "CgroupAutomount=no\n"  # 22.05: enough, because no plugin that we configure uses groups
    # 24.11 and 26.05: slurmd ends otherwise, "Unable to initialize cgroup plugin". CgroupAutomount is "defunct" there.
    return "CgroupPlugin=disabled\n"
