"""The clusters that a pass can speak to, each behind ``ports.Backend``; chosen by name here and nowhere else."""

from __future__ import annotations

import shutil

from reconciler.errors import ClusterUnreachable, UsageError
from reconciler.ports import Backend


def choose(name: str, slots: int | None) -> Backend:
    """The backend of a name. ``slots`` is how many jobs ``local`` runs at a time (None: one).

    ``auto`` takes Slurm's commands where they are, and never ``local``: cron on a login node without Slurm on its PATH
    would train there. Raises UsageError, or ClusterUnreachable where ``auto`` finds no Slurm.
    """
    if name == "local":
        from reconciler.backends.local import LocalBackend, default_state_dir

        return LocalBackend(default_state_dir(), slots or 1)
    if name == "cli" or (name == "auto" and all(shutil.which(command) for command in ("sbatch", "squeue"))):
        from reconciler.backends.slurm_cli import SlurmCli

        return SlurmCli()
    if name == "auto":
        raise ClusterUnreachable(
            "sbatch and squeue are not on PATH, so there is no cluster to ask; on a machine without Slurm, "
            "say --backend local to run the batch scripts here (auto never chooses that by itself)"
        )
    if name == "pyslurm":
        raise UsageError("the pyslurm backend is not available in this version; use --backend cli")
    raise UsageError(f"no backend is called {name!r}; there are auto, cli and local")
