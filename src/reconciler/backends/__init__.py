"""The clusters that a pass can speak to, each behind ``ports.Backend``; chosen by name here and nowhere else."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable

from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.ports import Backend


def choose(name: str, slots: int | None, say: Callable[[str], None]) -> Backend:
    """The backend of a name. ``slots`` is how many jobs ``local`` runs at a time (None: one); ``say`` hears where one backend has
    to stand in for another.

    ``auto`` takes pyslurm where it is installed beside Slurm's commands, which stand in for it, else the commands, and never
    ``local``: cron on a login node without Slurm on its PATH would train there. Raises UsageError, or ClusterUnreachable where
    ``auto`` finds no Slurm.
    """
    if name == "local":
        from reconciler.backends.local import LocalBackend, default_state_dir

        return LocalBackend(default_state_dir(), slots or 1)
    if name == "auto" and not all(shutil.which(command) for command in ("sbatch", "squeue")):
        raise ClusterUnreachable(
            "sbatch and squeue are not on PATH, so there is no cluster to ask; on a machine without Slurm, "
            "say --backend local to run the batch scripts here (auto never chooses that by itself)"
        )
    has_api = importlib.util.find_spec("pyslurm") is not None
    if name == "pyslurm" and not has_api:
        how = "install the release of it that is for this Slurm into reconcile's environment; --backend cli does without"
        raise UsageError(f"pyslurm is not installed here: {how}")
    if name not in ("auto", "pyslurm", "cli"):
        raise UsageError(f"no backend is called {name!r}; there are auto, pyslurm, cli and local")
    from reconciler.backends.slurm_cli import SlurmCli

    if name == "cli" or not has_api:
        return SlurmCli()
    from reconciler.backends.slurm_api import SlurmApi

    return SlurmApi(SlurmCli(), say)
