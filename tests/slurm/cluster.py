"""A real Slurm cluster of one node with accounting, on loopback, everything it writes under one directory.

Needs root and, on the machine whose programs it runs (machine.py), Debian's packages slurmctld, slurmd, slurmdbd, slurm-client,
munge and mariadb-server. What it starts it stops, by process id; a munged that runs already is shared and left alone, because a
file system has one socket for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from machine import Machine, ThisMachine, slurm_release
from releases import MARIADB_OPTIONS, cgroup_conf

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_HOST = socket.gethostname().split(".")[0]

_SLURM_CONF = """\
ClusterName=reconcile
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MinJobAge={min_job_age}
KillWait=2
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=20000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
{accounting}
"""
_WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost=localhost
DbdPort={accounting_port}
SlurmUser=root
LogFile={directory}/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


@dataclass
class Cluster:
    """One cluster. ``min_job_age`` is how many seconds squeue still shows a job that has ended."""

    directory: Path
    machine: Machine = field(default_factory=ThisMachine)
    has_accounting: bool = True
    min_job_age: int = 5
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf), "PATH": _PATH}

    def start(self) -> None:
        """Up and idle when this returns; raises RuntimeError with the logs' ends otherwise."""
        for name in ("state", "spool", "database", "munge"):
            (self.directory / name).mkdir(parents=True)
        self.directory.chmod(0o755)
        self._write_configuration()
        try:
            self._start_munge()
            if self.has_accounting:
                self._start_database()
                self.start_accounting()
                self._run("sacctmgr", "-i", "add", "cluster", "reconcile")
                self._run("sacctmgr", "-i", "add", "account", "lab")
            self.start_controller()
            self._start_node()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Everything down, newest first; the directory stays for whoever made it."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self._run("scancel", "--state=RUNNING", "--state=PENDING", timeout=10)
        for name in reversed(list(self._running)):
            self._end(name)

    def start_accounting(self) -> None:
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait("slurmdbd", lambda: _answers(self._ports["accounting_port"]))

    def stop_accounting(self) -> None:
        self._end("slurmdbd")

    def start_controller(self) -> None:
        self._spawn("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", lambda: "UP" in self._run("scontrol", "ping"))

    def stop_controller(self) -> None:
        self._end("slurmctld")

    @contextlib.contextmanager
    def configured(self, *lines: str, cgroup: str = "") -> Iterator[None]:
        """Other settings for a while: ``lines`` at the end of slurm.conf, where the last of a name counts, and ``cgroup.conf``."""
        slurm, groups = self.conf.read_text(), self.conf.with_name("cgroup.conf").read_text()
        try:
            self._restart(slurm + "".join(f"{line}\n" for line in lines), cgroup or groups)
            yield
        finally:
            self._restart(slurm, groups)

    def run(self, *command: str) -> str:
        """A command's output, as root on this cluster."""
        return self._run(*command)

    # --- pieces

    def _write_configuration(self) -> None:
        names = ("controller", "node", "accounting_port", "database")
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self._password = secrets.token_hex(8)
        facts = {"host": _HOST, "directory": self.directory, "min_job_age": self.min_job_age, "password": self._password}
        accounting = (
            _WITH_ACCOUNTING.format(**self._ports) if self.has_accounting else "AccountingStorageType=accounting_storage/none"
        )
        self.conf.write_text(_SLURM_CONF.format(**facts, **self._ports, accounting=accounting))
        (self.directory / "cgroup.conf").write_text(cgroup_conf(slurm_release(self.machine)))
        database = self.directory / "slurmdbd.conf"
        database.write_text(_SLURMDBD_CONF.format(**facts, **self._ports))
        database.chmod(0o600)

    def _restart(self, slurm: str, cgroup: str) -> None:
        self._end("slurmd")
        self.stop_controller()
        self.conf.write_text(slurm)
        self.conf.with_name("cgroup.conf").write_text(cgroup)
        self.start_controller()
        self._start_node()

    def _start_node(self) -> None:
        self._spawn("slurmd", "slurmd", "-D")
        self._wait("a node", lambda: self._run("sinfo", "-h", "-o", "%T").strip() in ("idle", "mixed", "allocated"))

    def _start_munge(self) -> None:
        if self._succeeds("munge", "-n"):
            return
        key = self.directory / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        (self.directory / "munge").chmod(0o700)
        self._run("install", "--directory", "--mode=755", "/run/munge")
        files = {
            "key-file": key,
            "pid-file": key.with_name("pid"),
            "log-file": key.with_name("log"),
            "seed-file": key.with_name("seed"),
        }
        self._spawn("munged", "munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        self._wait("munged", lambda: self._succeeds("munge", "-n"))

    def _start_database(self) -> None:
        data, sock = self.directory / "database", self.directory / "mysql.sock"
        install = ["mariadb-install-db", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=normal"]
        self._run(*install, "--skip-test-db", timeout=120)
        options = [
            f"--datadir={data}",
            f"--socket={sock}",
            f"--port={self._ports['database']}",
            f"--pid-file={self.directory}/mysql.pid",
        ]
        tuning = ["--innodb-buffer-pool-size=128M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"]
        self._spawn(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            "--user=root",
            "--bind-address=127.0.0.1",
            *options,
            *tuning,
            *MARIADB_OPTIONS,
        )
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "--execute"]
        self._wait("mariadbd", lambda: self._succeeds(*client, "select 1"))
        users = (f"create user slurm@'{host}' identified by '{self._password}'; grant all on slurm_acct_db.* to slurm@'{host}';"
                 for host in ("127.0.0.1", "localhost"))  # fmt: skip
        self._run(*client, "create database slurm_acct_db;" + "".join(users))

    def _spawn(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.out").open("ab") as output:
            self._running[name] = subprocess.Popen(
                self.machine.words(*command),
                env={**os.environ, **self.environment, "SLURMDBD_CONF": str(self.directory / "slurmdbd.conf")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        daemon = self._running.pop(name)
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _run(self, *command: str, timeout: float = 60) -> str:
        environment = {**os.environ, **self.environment}
        words = self.machine.words(*command)
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        return done.stdout

    def _succeeds(self, *command: str) -> bool:
        environment = {**os.environ, **self.environment}
        words = self.machine.words(*command)
        return subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def _wait(self, what: str, is_there: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not is_there():
            if time.monotonic() > end:
                logs = "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self.directory.glob("*.log"))
                raise RuntimeError(f"no {what} after {seconds:.0f} s\n{logs}")
            time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running_cluster(directory: Path, machine: Machine, **options: bool | int) -> Iterator[Cluster]:
    """A cluster for the time of a ``with`` block; nothing of it is left afterwards."""
    cluster = Cluster(directory, machine, **options)  # type: ignore[arg-type]
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
