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

    ``auto`` takes pyslurm where it is installed, else Slurm's commands, and never ``local``: cron on a login node without Slurm
    on its PATH would train there. Raises UsageError, or ClusterUnreachable where ``auto`` finds no Slurm.
    """
    has_api = name in ("auto", "pyslurm") and importlib.util.find_spec("pyslurm") is not None
    if name == "local":
        from reconciler.backends.local import LocalBackend, default_state_dir

        return LocalBackend(default_state_dir(), slots or 1)
    if has_api:
        from reconciler.backends.slurm_api import SlurmApi
        from reconciler.backends.slurm_cli import SlurmCli

        return SlurmApi(SlurmCli(), say)
    if name == "cli" or (name == "auto" and all(shutil.which(command) for command in ("sbatch", "squeue"))):
        from reconciler.backends.slurm_cli import SlurmCli

        return SlurmCli()
    if name == "auto":
        raise ClusterUnreachable(
            "sbatch and squeue are not on PATH, so there is no cluster to ask; on a machine without Slurm, "
            "say --backend local to run the batch scripts here (auto never chooses that by itself)"
        )
    if name == "pyslurm":
        raise UsageError(
            "pyslurm is not installed here: `pip install 'reconciler[pyslurm]'` builds it for this Slurm, or use cli"
        )
    raise UsageError(f"no backend is called {name!r}; there are auto, pyslurm, cli and local")
