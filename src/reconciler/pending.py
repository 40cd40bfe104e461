"""Why a job that waits in the queue waits, in words; pure.

The words are those of man squeue, "JOB REASON CODES"; each row has a reason as it was seen on 22.05 or 24.11, or, marked `doc`,
as slurm.schedmd.com/job_reason_codes.html has it. The first row that fits counts. A reason without a row is shown as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PendingReason:
    """A reason by a regular expression (anchored at its begin), a sample of it, and what it means. ``is_final``: the job will not
    start as it is, however long it waits."""

    pattern: str
    sample: str
    sentence: str
    is_final: bool = False


_REASONS = (
    PendingReason("Priority", "Priority", "others are before it"),
    PendingReason("Resources", "Resources", "waits for free nodes"),
    PendingReason("BeginTime", "BeginTime", "its begin time has not come"),
    PendingReason("Dependency$", "Dependency", "waits for another job to end"),
    PendingReason("Licenses", "Licenses", "waits for a licence"),  # doc
    PendingReason("Reservation$", "Reservation", "waits for its reservation to begin"),
    PendingReason(
        ".*Reserved for maintenance", "ReqNodeNotAvail, Reserved for maintenance", "its nodes are reserved for maintenance"
    ),
    PendingReason(
        "ReqNodeNotAvail.*reserved",
        "ReqNodeNotAvail, May be reserved for other job",
        "nodes that it needs are not available, or reserved before it could end",
    ),
    PendingReason("ReqNodeNotAvail", "ReqNodeNotAvail, UnavailableNodes:n1", "nodes that it needs are down or drained"),
    PendingReason(
        "Nodes required for job are DOWN",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        "nodes that it needs are down or drained",
    ),
    PendingReason("PartitionDown", "PartitionDown", "its partition is down"),
    PendingReason("PartitionInactive", "PartitionInactive", "its partition is inactive"),  # doc
    PendingReason("PartitionTimeLimit", "PartitionTimeLimit", "it asks for more time than its partition gives", True),
    PendingReason("PartitionNodeLimit", "PartitionNodeLimit", "it asks for more nodes than its partition gives", True),
    PendingReason("PartitionConfig", "PartitionConfig", "it asks for what its partition does not have", True),
    PendingReason("BadConstraints", "BadConstraints", "no node has what it asks for", True),  # doc
    PendingReason("InvalidAccount", "InvalidAccount", "its account is not valid", True),  # doc
    PendingReason("InvalidQOS", "InvalidQOS", "its QOS is not valid", True),  # doc
    PendingReason(
        "AccountNotAllowed|Job's account not permitted",
        "Job's account not permitted to use this partition (gpu allows root not lab)",
        "its account may not use its partition",
        True,
    ),
    PendingReason(
        "QOSNotAllowed|Job's QOS not permitted",
        "Job's QOS not permitted to use this partition (gpu allows high not normal)",
        "its QOS may not use its partition",
        True,
    ),
    PendingReason(
        ".*not in group permitted",
        "uid 1009 not in group permitted to use this partition (gpu). groups allowed: root",
        "your group may not use its partition",
        True,
    ),
    PendingReason("QOSMin.*NotSatisfied", "QOSMinCpuNotSatisfied", "it asks for less than its QOS wants", True),
    PendingReason("QOSMax.*Per(Job|Node)", "QOSMaxCpuPerJobLimit", "it asks for more than its QOS gives one job", True),
    PendingReason(
        "AssocMax.*Per(Job|Node)", "AssocMaxWallDurationPerJobLimit", "it asks for more than one job of yours may", True
    ),
    PendingReason("QOSMaxJobsPerUser", "QOSMaxJobsPerUserLimit", "you have as many jobs running as the QOS lets a user have"),
    PendingReason("QOSMax.*PerUser", "QOSMaxCpuPerUserLimit", "you use as much as the QOS gives a user"),
    PendingReason("(QOS)?Max.*PerAccount", "MaxJobsPerAccount", "your account uses as much as the QOS gives an account"),
    PendingReason("QOSGrp.*Minutes", "QOSGrpCPUMinutesLimit", "the time that the QOS has for all its jobs is used up"),
    PendingReason("QOSGrp", "QOSGrpJobsLimit", "the QOS is used to the full by all who share it"),
    PendingReason("AssocGrp.*Minutes", "AssocGrpCPUMinutesLimit", "the time that your account or you were given is used up"),
    PendingReason("AssocGrp", "AssocGrpCpuLimit", "your account or you use as much at a time as you may"),
    PendingReason("AssocMaxJobs", "AssocMaxJobsLimit", "you have as many jobs running as you may"),
)


def tell(reason: str) -> str:
    """The sentence for a reason, and the reason itself, which people look up; the reason alone where there is no sentence; empty
    for none."""
    if reason in ("", "None"):
        return ""
    found = _find(reason)
    return f"{found.sentence} ({reason})" if found else reason


def never_starts(reason: str) -> bool:
    """True where waiting is no remedy: the job asks for what it will not be given."""
    found = _find(reason)
    return found is not None and found.is_final


def _find(reason: str) -> PendingReason | None:
    return next((row for row in _REASONS if re.match(row.pattern, reason)), None)
