"""Holding a queued job and letting it go, with what is written of either.

The intent comes first: a hold that nothing in writing tells of would look like a person's, and never be lifted. ``attempt`` is
None for a job that no attempt in writing has.
"""

from __future__ import annotations

from reconciler.ledger import Ledger
from reconciler.ports import Backend


def hold_job(ledger: Ledger, backend: Backend, key: str, attempt: int | None, job: str) -> None:
    """Raises ClusterUnreachable where the cluster did not obey; the next pass sees whether it did all the same."""
    if attempt is not None:
        ledger.append("queue-holding", step=key, attempt=attempt)
    backend.hold(job)
    if attempt is not None:
        ledger.append("queue-held", step=key, attempt=attempt)


def let_go(ledger: Ledger, backend: Backend, key: str, attempt: int | None, job: str) -> None:
    """Raises ClusterUnreachable; ``attempt`` is None also where the hold was not ours."""
    backend.release(job)
    if attempt is not None:
        ledger.append("unheld", step=key, attempt=attempt)
