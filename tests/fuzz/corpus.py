"""What the fuzzers begin with: the samples of real files, the documents of the tests, captured answers, and words that hurt."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from functools import cache
from pathlib import Path

from fuzz import containers
from reconciler.events import Event
from reconciler.model import Token
from worlds import NOW, done, ended, evaluation, finetune, submitted

TESTS = Path(__file__).resolve().parent.parent
EXAMPLE = TESTS.parent / "examples" / "cap_4L_lora_lr"

TOKENS: tuple[bytes, ...] = (
    b"\0", b"\r", b"\r\n", b"\x1b[2J", b"\x1b]0;x\x07", b"\xc2\x9b31m", b"\xe2\x80\xae", b"\xe2\x80\x8b", b"\xed\xa0\x80", b"\xff",
    b"\xef\xbb\xbf", b"\xc2\xb2", b"\xd9\xa3", b"\xe2\x80\xa8", b"\x85", b"\x1e", b"\x1f", b"\x0c", b"\x7f", b"../", b"/", b"--help",
    b"NaN", b"Infinity", b"-1", b"1e999", b"-0.0", b"9" * 400, b"1" + b"0" * 30, b"9223372036854775808", b"4294967296", b"0x7f",
    b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\u0000"', b'"\\u001b[1m"', b"[" * 40, b"{" * 40, b'{"a":' * 20,
    b"&a [*a]", b"<<: *a", b"*a", b"!!python/object/apply:os.system", b"? ", b"- ", b": ", b"|\n", b"```\n", b"<!--", b"-->", b"> ",
    b"${output_dir}", b"${a}", b"${.a}", b"epochs: 999999999", b"|", b"\\|", b"`", b"``", b"**", b"\\", b"    ", b"\t", b"#", b"$(x)",
    b"$A", b"A=$A$A\n", b"#SBATCH --time=", b"#SBATCH --begin=", b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04", b"\xff\xff\xff\xff",
    b"\x28\xb5\x2f\xfd", b"\x8a", b"\x8b", b"\x95" + b"\xff" * 8, b"X\xff\xff\xff\x7f", b"2026-13-45", b"0001-01-01", b"9999-12-31Z",
)  # fmt: skip


@cache
def _members(sample: str) -> dict[str, bytes]:
    """The files of one sample archive, by name."""
    with tarfile.open(TESTS / "samples" / f"{sample}.tar.gz") as archive:
        found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in found.items() if file}


def _ending(sample: str, *endings: str, most: int = 40_000) -> list[bytes]:
    """The different contents of a sample's files with these endings, small ones alone."""
    found = (content for name, content in sorted(_members(sample).items()) if name.endswith(endings) and len(content) <= most)
    return list(dict.fromkeys(found))


def seeds(target: str) -> list[bytes]:
    """The cases that a target's fuzzing begins with."""
    return _SEEDS[target]()


def _documents(*endings: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((TESTS / "documents").iterdir()) if path.name.endswith(endings)]


def _markdown() -> list[bytes]:
    return [*_documents(".md"), (EXAMPLE / "experiment_summary.md").read_bytes(), _SMALL, _SMALL.replace(b"\n", b"\r\n")]


_SMALL = (
    b"# x\n\n## All Runs\n\n| Run Name | Type | Epochs |\n|---|---|---|\n| a | Fine-tuned | 2 |\n| b | Control | - |\n\n"
    b"## Evaluation Plan\n\n| Run Name | cap |\n|---|---|\n| a | \xe2\x9c\x93 epochs 0-1 |\n| b | \xe2\x9c\x93 |\n\n"
    b"## Configuration\n- **Epochs:** 2\n### Output\n- **Checkpoint directory**: `/o`\n- **Naming pattern**: `x-{run_name}/epoch_{N}`\n"
)


def _status_tables() -> list[bytes]:
    header = b"\n| Run Name | Status | Job ID | Started | Completed | Notes |\n|---|:-:|---|---|---|---|\n"
    rows = b"| r8_lr1e-5 | PENDING | | | | ask Ana |\n| other | **FAILED** | `7` | - | - | ask Ana \\| Bo |\n"
    plan = b"\n## Evaluation Status\n\n> Run Name | Task | Epoch | Status | Notes\n> ---|---|---|---|---\n> 1B_base | capitalization | - | |\n"
    return [
        *_markdown(),
        b"# x\n" + header + rows + plan,
        b"\xef\xbb\xbf# x\r\n## Fine-tuning Status\r\n\r\nwords",
        b"x\r| a |\r",
    ]


def _yaml() -> list[bytes]:
    return [
        *_documents(".yaml"),
        b"experiment: {name: x}\nruns:\n- {name: a, type: fine-tuned, parameters: {epochs: 2}}\n- &b {name: b, type: control}\n"
        b"evaluation: {tasks: [{name: cap}], matrix: [{run: a, tasks: [cap], epochs: [0, 1]}, {run: b, tasks: [cap]}]}\n",
    ]


def _settings() -> list[bytes]:
    return [
        (EXAMPLE / "reconcile.yaml").read_bytes(),
        b"backend: local\nstagger: 5s\nmax_in_flight: null\npoll: 1.5m\ngrace: 10m\nretry: {NodeFailure: 10, UserError: 0}\n"
        b"stop_after_failures: 3\ndocument: none\nrequeue: true\n",
    ]


def _finetune_yaml() -> list[bytes]:
    return [
        *_ending("torchtune", "finetune.yaml", "torchtune_config.yaml"),
        b"a: &a {x: 1, y: [1, 2e-4, .nan]}\nb: {<<: *a, z: '${a.x}'}\noutput_dir: /o/${b.z}\nepochs: 2\nepochs_to_save: [0, 1]\n"
        b"resume_from_checkpoint: False\ncheckpointer: {checkpoint_dir: /base, output_dir: '${output_dir}'}\n",
    ]


def _batch_scripts() -> list[bytes]:
    return [
        *_ending("torchtune", ".slurm"),
        *(path.read_bytes() for path in sorted(EXAMPLE.glob("r8*/**/*.slurm"))),
        b"#!/bin/bash\n#SBATCH -J x -t 1-02:03:04 --begin=now+3hours\n#SBATCH --output='a b/%5j.out' # c\nset -e\nA=1; export B=$A\n"
        b'cd "$B"\ninspect eval t.py@cap -T a=$A --model hf/local -M model_path=/o/epoch_0 --limit=2 \\\n --log-dir logs > x\n',
        b"#!/bin/bash\n(cd //runs/x && ls) | cat\ncd //runs/x || exit 1\ninspect eval t.py\n",
        b"#!/bin/bash\nif true; then\n  cd a\nfi\nf() { cat <<E\nit's\nE\n}\ncase $x in (a) tune run x;; esac\ntune run x --config a.yaml &\n",
    ]


def _squeue() -> list[bytes]:
    name = Token.of(finetune().script.parent.parent, "a/finetune", 1).job_name("job")
    row = ["101", "RUNNING", "None", "1700000000", "1700000010", "N/A", "u", "0:0", "n1", name, "/exp/a"]
    pending = ["102_[1-9]", "PENDING", "JobHeldUser", "1700000000", "N/A", "N/A", "u", "768", "", "other", "/exp/a\nb"]
    records = ["\x1f".join(f" {field}" for field in fields) + "\x1e\n" for fields in (row, pending)]
    return [records[0].encode(), "".join(records).encode(), b""]


def _sacct() -> list[bytes]:
    name = Token.of(finetune().script.parent.parent, "a/finetune", 1).job_name("job")
    row = ["101", "CANCELLED by 7", "0:9", "1700000000", "Unknown", "1700000010", "1700000020", "u", "n1", "/exp/a", name]
    other = [
        "102+0",
        "COMPLETED",
        "0:0",
        "1700000000",
        "1700000000",
        "1700000010",
        "1700000020",
        "u",
        "n[1-2]",
        "/x",
        "two\nlines",
    ]
    lines = ["\x1f".join(fields) + "\n" for fields in (row, other)]
    return [lines[0].encode(), "".join(lines).encode(), b""]


def _sbatch() -> list[bytes]:
    return [
        b"\x001234\n\x00",
        b"\x00sbatch: a warning\n1234;mini\n\x00sbatch: warning",
        b"\x01\x00sbatch: error: Batch job submission failed: Invalid partition name specified\n",
        b"\x01\x00sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n",
        b"\x7c12\x00",
    ]


def _ledger() -> list[bytes]:
    tune, judge = finetune(), evaluation()
    opened = {"event": "opened", "at": NOW, "cluster": "memory:test", "path": "/x", "user": "u", "environment": {"HOME": True}}
    evidence = [{"path": "/o/x", "size": 3, "mtime_ns": 5}]
    histories: list[list[Event]] = [
        [opened],
        submitted(tune),
        ended(tune, "NodeFailure", started=NOW - 950, exit_code="0:9"),
        [*submitted(tune), {**done(tune), "evidence": evidence, "meaning": {"a": "1"}}, *submitted(judge)],
        [*submitted(tune)[:1], {"event": "refused", "at": NOW, "step": tune.key, "attempt": 1, "message": "no"}],
        [{"event": "hold", "at": NOW, "step": tune.key, "user": "u", "why": "w"}, {"event": "release", "at": NOW, "user": "u"}],
        [{"event": "rerun", "at": NOW, "step": tune.key, "newest": NOW}, {"event": "heard", "at": NOW, "words": "x"}],
        [
            {"event": "writing", "at": NOW, "cells": {"a|||Status": "RUNNING"}},
            {"event": "unwritten", "at": NOW, "cells": {"a|||Status": "RUNNING"}},
        ],
        [{"event": "stands", "at": NOW, "states": {tune.key: "RUNNING"}}, {"event": "root", "at": NOW, "path": "/o"}],
        [{"event": "names", "at": NOW, "kept": True}, {"event": "of a later version", "at": NOW, "anything": [1]}],
        [{"event": "adopted", "at": NOW, "step": tune.key, "attempt": 2, "job": "9", "name": "n", "by_hand": True}],
        [{"event": "pause", "at": NOW, "until": NOW + 60, "until_text": "then"}, {"event": "resume", "at": NOW, "user": "u"}],
        [done(tune), {"event": "free", "at": NOW, "step": tune.key, "epochs": [0], "bytes": 9, "user": "u"}],
        [{"event": "renaming", "at": NOW, "old": "a", "new": "b"}, {"event": "renamed", "at": NOW, "old": "a", "new": "b"}],
        [
            *submitted(tune),
            {"event": "edited", "at": NOW, "step": tune.key, "path": "/x/y", "key": "k", "before": "1", "after": "2"},
        ],
        [*submitted(tune, held=True), {"event": "withdrawing", "at": NOW, "step": tune.key, "attempt": 1}],
    ]
    return [b"".join(json.dumps(event).encode() + b"\n" for event in events) for events in histories]


def _eval_log() -> list[bytes]:
    logs = _ending("inspect", ".eval")
    headers = [json.loads(containers.entry(log, "header.json")) for log in logs if b"header.json" in log]
    small = [json.dumps(header).encode() for header in headers]
    begun = json.dumps({"eval": headers[0]["eval"]}).encode()
    wrapped = [kind + header for header in small for kind in (containers.HEADER, containers.DEFLATED_HEADER, containers.PLAIN)]
    return [*(containers.RAW + log for log in logs), *wrapped, containers.BEGUN + begun]


def _safetensors() -> list[bytes]:
    files = _ending("torchtune", "adapter_model.safetensors")
    small = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"data_offsets":[8,16]}}'
    return [*(containers.RAW + file for file in files[:2]), containers.HEADER + small]


def _torch_zip() -> list[bytes]:
    files = [file for file in _ending("torchtune", "adapter_model.pt", "recipe_state.pt") if zipfile.is_zipfile(io.BytesIO(file))]
    pickles = [_pickle(file) for file in files]
    kinds = (containers.HEADER, containers.DEFLATED_HEADER)
    return [*(containers.RAW + file for file in files[:2]), *(kind + pickle for pickle in pickles for kind in kinds)]


def _pickle(file: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def _epoch_directory() -> list[bytes]:
    named = b'{"metadata":{"total_size":1},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}'
    return [*_ending("torchtune", "index.json", "adapter_config.json"), named]


def _eval_yaml() -> list[bytes]:
    return [b"limit: 5\ntask: cap\nargs: {a: 1, b: [x, 2.5, 2026-01-01]}\n", b"&a x: *a\n", b"- a\n"]


_SEEDS = {
    "markdown": _markdown,
    "yaml_form": _yaml,
    "settings": _settings,
    "finetune_yaml": _finetune_yaml,
    "eval_yaml": _eval_yaml,
    "batch_script": _batch_scripts,
    "status_tables": _status_tables,
    "squeue": _squeue,
    "sacct": _sacct,
    "sbatch": _sbatch,
    "ledger": _ledger,
    "eval_log": _eval_log,
    "safetensors": _safetensors,
    "torch_zip": _torch_zip,
    "epoch_directory": _epoch_directory,
}
