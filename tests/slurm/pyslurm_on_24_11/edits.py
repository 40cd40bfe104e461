"""The edits that let pyslurm 25.11.2's sources compile against Slurm 24.11, beside the header ``older_slurm.h``.

They are of three kinds: the release check goes, a job's id is a number again (25.11 puts it in a step's id), and a field that 24.11
does not have reads as unset. Nothing that our backend uses is among the fields lost. Each edit must find its text: another pyslurm
is refused rather than half edited.
"""

from __future__ import annotations

from pathlib import Path

# Where 25.11 says ``step_id.job_id`` and 24.11 has a ``job_id``: in pyslurm's own code …
_IDS_IN_CODE = {
    "pyslurm/core/job/job.pyx": {"changes.ptr.step_id.job_id": "changes.ptr.job_id", "msg.step_id.job_id": "msg.job_id"},
    "pyslurm/core/job/submission.pyx": {"resp.step_id.job_id": "resp.job_id"},
    "pyslurm/core/job/step.pyx": {"js.umsg.step_id = self.ptr.step_id": "pass"},  # changes of a running step: not used here
}  # fmt: skip

# … and in its copies of Slurm's declarations, by the line that opens the struct.
_IDS_IN_STRUCTS = {
    "pyslurm/slurm/slurm.h.pxi": ("submit_response_msg", "job_descriptor", "step_update_request_msg", "job_info"),
    "pyslurm/slurm/extra.pxi": ("job_id_msg_t",),
}

# Fields that came after 24.11, and the value that pyslurm's own conversions (to_unicode, u16_parse, …) take for "unset".
_UNSET_FIELDS = {
    "pyslurm/core/job/job.pyx": {
        "self.ptr.licenses_allocated": "NULL", "self.ptr.submit_line": "NULL", "self.ptr.segment_size": "0",
    },
    "pyslurm/core/job/step.pyx": {
        "self.ptr.std_in": "NULL", "self.ptr.std_out": "NULL", "self.ptr.std_err": "NULL", "self.ptr.cwd": "NULL",
        "self.ptr.tres_fmt_alloc_str": "NULL",
    },
    "pyslurm/core/node.pyx": {
        "self.info.alloc_memory": "0", "self.info.alloc_cpus": "0", "self.info.alloc_tres_fmt_str": "NULL",
    },
    "pyslurm/core/slurmctld/config.pyx": {
        "self.ptr.epilog_timeout": "0", "self.ptr.prolog_timeout": "0", "self.ptr.namespace_plugin": "NULL",
        "self.ptr.metrics_type": "NULL",
    },
    "pyslurm/db/job.pyx": {"self.ptr.resv_req": "NULL", "self.ptr.segment_size": "0"},
    "pyslurm/db/step.pyx": {
        "self.ptr.cwd": "NULL", "self.ptr.std_in": "NULL", "self.ptr.std_out": "NULL", "self.ptr.std_err": "NULL",
        "self.ptr.timelimit": "0",
    },
}  # fmt: skip

# setup.py compares the release that it was written for with the one it finds.
_RELEASE_CHECK = {"setup.py": {"Version(self.version) != Version(SLURM_VERSION)": "False"}}


def apply(source: Path) -> None:
    """Edit an unpacked source distribution in place. Raises ValueError where it is not the one that the edits were made for."""
    for table in (_RELEASE_CHECK, _IDS_IN_CODE, _UNSET_FIELDS):
        for name, pairs in table.items():
            _rewrite(source / name, pairs)
    for name, structs in _IDS_IN_STRUCTS.items():
        for struct in structs:
            _give_plain_id(source / name, struct)


def _rewrite(path: Path, pairs: dict[str, str]) -> None:
    text = path.read_text()
    for old, new in pairs.items():
        if old not in text:
            raise ValueError(f"{path}: there is no {old!r} to replace; these edits are for pyslurm 25.11.2")
        text = text.replace(old, new)
    path.write_text(text)


def _give_plain_id(path: Path, struct: str) -> None:
    """In one struct's declaration, which ends at the next empty line, the step id becomes a job id."""
    text = path.read_text()
    start = text.find(f"struct {struct}:")
    end = text.find("\n\n", start)
    declaration = text[start:end]
    if start < 0 or "slurm_step_id_t step_id" not in declaration:
        raise ValueError(f"{path}: there is no step id in a struct {struct}; these edits are for pyslurm 25.11.2")
    path.write_text(text[:start] + declaration.replace("slurm_step_id_t step_id", "uint32_t job_id") + text[end:])
