"""The process that imports pyslurm, so that what goes wrong in there ends or hangs nothing else.

Run as a script: without a usable slurm.conf ``import pyslurm`` ends the interpreter, its calls hold the GIL, and a bug in it is a
segmentation fault (``Job.hold(mode="user")`` on 25.11). It reads one JSON request after another from the socket whose descriptor
is its argument, and answers each with one JSON object: ``{"value": …}``, or ``{"errno": …, "message": …}`` where Slurm refused,
or ``{"unsent": …}`` where pyslurm failed before it asked Slurm anything. Descriptors that come with a request stay open until it
is answered. It ends when the other side is gone, or a request takes too long.

Works with the API that pyslurm has had from 22.5.3 to 25.11.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LARGEST_REQUEST = 16 << 20
_MAX_DESCRIPTORS = 8

_JOB = (
    "id", "name", "state", "state_reason", "exit_code", "exit_code_signal", "submit_time", "eligible_time", "start_time",
    "end_time", "user_name", "working_directory", "array_id", "array_task_id", "array_tasks_waiting", "cancelled_by",
    "allocated_nodes", "nodelist",  # a queued job has the first, an accounted one the second
)  # fmt: skip


def serve(connection: socket.socket) -> None:
    """Answer requests until there are no more."""
    import pyslurm

    calls = _Calls(pyslurm)
    reply(connection, {"value": str(getattr(pyslurm, "__version__", "unknown"))})
    while True:
        request, descriptors = receive(connection)
        if request is None:
            return
        signal.alarm(int(request["seconds"]))  # its default action ends this process, also in a call that holds the GIL
        answer = calls.answer(request)
        signal.alarm(0)
        reply(connection, answer)
        for descriptor in descriptors:
            os.close(descriptor)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request with the descriptors that came with it; None where the other side is gone."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, _MAX_DESCRIPTORS)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    head += read_exactly(connection, 8 - len(head)) if head else b""
    body = read_exactly(connection, min(int.from_bytes(head, "big"), LARGEST_REQUEST)) if len(head) == 8 else b""
    return (json.loads(body) if body else None), list(descriptors)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer where the other side is gone."""
    parts = []
    while size > 0 and (part := connection.recv(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def reply(connection: socket.socket, answer: Any) -> None:
    """One JSON document, its length before it."""
    body = json.dumps(answer).encode()
    connection.sendall(len(body).to_bytes(8, "big") + body)


class _Calls:
    """What may be asked, each a method."""

    def __init__(self, pyslurm: Any) -> None:
        self._pyslurm = pyslurm

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        call: Callable[..., Any] = getattr(self, "call_" + request["call"])
        try:
            return {"value": call(**request["arguments"])}
        except self._pyslurm.RPCError as error:
            number = getattr(error, "errno", None)
            return {"errno": number if isinstance(number, int) else -1, "message": str(error.args[0] if error.args else error)}
        except Exception as error:  # noqa: BLE001 - whatever pyslurm's own code stumbled over, before any request went out
            return {"unsent": f"{type(error).__name__}: {error}"}

    def call_cluster(self) -> str:
        """The ClusterName of slurm.conf; asks nobody."""
        return str(self._pyslurm.settings.LOCAL_CLUSTER)

    def call_site(self) -> dict[str, Any]:
        """The controller's release, and what changes submissions on this host and acts in sbatch alone (slurm.conf:
        CliFilterPlugins; plugstack.conf)."""
        config = self._pyslurm.slurmctld.Config.load()
        named = [str(plugin) for plugin in getattr(config, "cli_filter_plugins", None) or []]
        beside = Path(os.environ.get("SLURM_CONF") or "/etc/slurm/slurm.conf").with_name("plugstack.conf")
        filters = [*named, *_spank_plugins(Path(getattr(config, "plugin_stack_config", None) or beside))]
        return {"release": str(getattr(config, "version", None) or ""), "filters": filters}

    def call_queue(self, uid: int) -> list[dict[str, Any]]:
        """One user's jobs; the API has no request for less than everyone's."""
        jobs = self._pyslurm.Jobs.load()
        return [_facts(job) for job in jobs.values() if job.user_id == uid]

    def call_accounting(self, uid: int, ids: list[int]) -> list[dict[str, Any]]:
        """The jobs of some ids, those that never were eligible among them (a time window would leave those out)."""
        wanted = self._pyslurm.db.JobFilter(ids=ids, users=[uid])
        return [_facts(job) for job in self._pyslurm.db.Jobs.load(wanted).values()]

    def call_submit(self, description: dict[str, Any]) -> int:
        return int(self._pyslurm.JobSubmitDescription(**description).submit())

    def call_cancel(self, job: int) -> None:
        self._pyslurm.Job(job).cancel()

    def call_hold(self, job: int) -> None:
        self._pyslurm.Job(job).hold()

    def call_release(self, job: int) -> None:
        self._pyslurm.Job(job).release()


def _spank_plugins(stack: Path, depth: int = 8) -> list[str]:
    """The plugins that a plugstack.conf names, itself and in what it includes (man spank, CONFIGURATION)."""
    try:
        lines = [line.split("#", 1)[0].split() for line in stack.read_text("utf-8", "replace").splitlines()]
    except FileNotFoundError:
        return []
    found = [words[1] for words in lines if len(words) > 1 and words[0] in ("required", "optional")]
    for words in lines:
        if words[:1] == ["include"] and len(words) > 1 and depth:
            for other in glob.glob(str(stack.parent / words[1])):  # noqa: PTH207 - the pattern may be absolute
                found += _spank_plugins(Path(other), depth - 1)
    return found


def _facts(job: Any) -> dict[str, Any]:
    return dict(_fields(job))


def _fields(job: Any) -> Iterator[tuple[str, Any]]:
    for name in _JOB:
        value = getattr(job, name, None)
        yield name, value if value is None or isinstance(value, int) else str(value)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
