"""What docs/security.md promises, tried: no shell, nothing outside, nothing raw on a terminal, nothing unpickled, nothing wide open."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from commands import Said, reconcile
from reconciler.disk import RealDisk
from reconciler.errors import InvalidExperiment
from reconciler.experiment.load import load
from reconciler.tools import all_tools

pytestmark = pytest.mark.fault("names, paths and messages that attack a shell, the disk or a terminal", rerun="make faults")

SOURCES = Path(__file__).resolve().parents[2] / "src"
CLEAR, TITLE, C1, TURN = "\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\u202e"
HOSTILE = CLEAR + TITLE + C1 + TURN + "\u2066\u200b\x08\r\x7f"

DOCUMENT = "# x\n\n## All Runs\n\n| Run Name | Type |\n|---|---|\n| {name} | Fine-tuned |\n"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RECONCILE_LOCAL_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("RECONCILE_BACKEND", "local")
    return experiment(tmp_path / "x")


def experiment(directory: Path, name: str = "a") -> Path:
    (directory / name).mkdir(parents=True)
    (directory / "experiment_summary.md").write_text(DOCUMENT.format(name=name))
    (directory / name / "finetune.slurm").write_text("#!/bin/bash\ntrue\n")
    (directory / name / "finetune.yaml").write_text("output_dir: out\nepochs: 1\n")
    return directory


def no_steering(said: Said) -> None:
    assert said.code != 70, said.err
    for text in (said.out, said.err):
        steering = [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        assert not steering, text


def in_a_process(*arguments: object, **more: str) -> Said:
    """A command as a person starts it, whose streams are what its encoding makes of them."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), **more}
    command = [sys.executable, "-m", "reconciler", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False, stdin=subprocess.DEVNULL)
    return Said(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"))


# --- names and paths -----------------------------------------------------------------------------------------

REFUSED = {
    "an option": "--help",
    "a short option": "-rf",
    "hidden": ".hidden",
    "here": ".",
    "above": "..",
    "outside": "../outside",
    "absolute": "/etc",
    "a directory below": "a/b",
    "a shell's substitution": "$(touch pwned)",
    "a shell's backticks": "`touch pwned`",
    "a shell's end of command": "a;touch pwned",
    "a shell's pipe": "a&touch pwned",
    "a glob": "a*",
    "a quote": "a'b",
    "another quote": 'a"b',
    "a pattern of Slurm": "a%j",
    "a newline": "a<br>b\x0bc",
    "an escape": f"a{CLEAR}",
    "an escape of eight bits": f"a{C1}",
    "a turn of direction": f"a{TURN}b",
    "an isolate": "a\u2066b",
    "nothing to be seen": "a\u200bb",
    "a NUL": "a\0b",
    "a delete": "a\x7fb",
    "a line separator": "a\u2028b",
    "another space": "a\u00a0b",
    "an absurd length": "a" * 256,
    "an absurd length in bytes": "ä" * 128,
    "an absurd length by far": "a" * 100_000,
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("form", ["md", "yaml"])
def test_a_name_that_could_be_anything_but_a_directory_is_refused_with_a_reason(lab, what, form):
    name = REFUSED[what]
    (lab / "experiment_summary.md").unlink()
    if form == "md":
        (lab / "experiment_summary.md").write_text(DOCUMENT.format(name=name.replace("*", r"\*").replace("`", r"\`")))
    else:
        document = {"experiment": {"name": "x"}, "runs": [{"name": name, "type": "fine-tuned"}]}
        (lab / "experiment_summary.yaml").write_text(json.dumps(document))
    before = sorted(lab.parent.rglob("*"))
    with pytest.raises(InvalidExperiment) as refused:
        load(lab, all_tools(), RealDisk())
    assert any(word in str(refused.value) for word in ("accepted", "NUL", "not allowed"))
    assert len(str(refused.value)) < 5000
    if what not in ("an absurd length by far",):
        said = reconcile("apply", lab)
        assert said.code == 2
        no_steering(said)
    assert sorted(lab.parent.rglob("*")) == before


def test_a_task_is_refused_like_a_run(lab):
    for name in ("../../x", "--help", "a/b", "a\u202eb"):
        plan = f"\n## Evaluation Plan\n\n| Run Name | {name} |\n|---|---|\n| a | ✓ |\n"
        (lab / "experiment_summary.md").write_text(DOCUMENT.format(name="a") + plan)
        with pytest.raises(InvalidExperiment, match="accepted"):
            load(lab, all_tools(), RealDisk())


def test_a_naming_pattern_that_leaves_its_root_is_refused(lab):
    text = DOCUMENT.format(name="a") + "\n## Configuration\n### Output\n**Naming pattern:** `../../{run_name}/epoch_{N}`\n"
    (lab / "experiment_summary.md").write_text(text)
    with pytest.raises(InvalidExperiment, match="naming pattern"):
        load(lab, all_tools(), RealDisk())


def test_a_run_that_is_a_link_out_of_the_experiment_is_blocked(lab, tmp_path):
    (lab / "a").rename(tmp_path / "elsewhere")
    (lab / "a").symlink_to(tmp_path / "elsewhere")
    said = reconcile("apply", lab)
    assert said.code == 4
    assert "leads out of the experiment" in said.out + said.err
    assert not (tmp_path / "local" / "jobs").exists()


@pytest.mark.parametrize("name", ["a b", "a+b=c,d@e", "naïve", "実験", "a$b"[:1] + "-1", "r8_lr1e-5.v2"])
def test_a_name_that_is_accepted_goes_through_a_whole_pass_and_nothing_outside_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RECONCILE_LOCAL_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("RECONCILE_BACKEND", "local")
    directory = experiment(tmp_path / "x", name)
    (tmp_path / "precious").write_text("data")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "local" not in path.parts and path.is_file()}
    said = reconcile("apply", directory)
    assert said.code == 0, said.err
    written = {path for path in tmp_path.rglob("*") if path.is_file() and before.get(path) != path.stat().st_mtime_ns}
    assert all(path.is_relative_to(directory) or path.is_relative_to(tmp_path / "local") for path in written), written


def test_no_command_is_ever_given_to_a_shell():
    """By the text of the sources: no call with a shell, none that is one."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), path
                assert not any(word.arg == "shell" for word in node.keywords), path
                if called.startswith("subprocess."):
                    assert not (node.args and isinstance(node.args[0], (ast.Constant, ast.JoinedStr))), (path, node.lineno)


# --- pickles ---------------------------------------------------------------------------------------------------

_WITHOUT_PICKLE = """
import os, pickle, sys, _pickle  # pickletools, which reads opcodes and runs none, imports pickle too
def refuse(*arguments, **more):
    os.write(2, b"unpickled")
    os._exit(99)
for module in (pickle, _pickle):
    for name in ("load", "loads", "Unpickler"):
        setattr(module, name, refuse)
pickle._Unpickler = pickle._load = pickle._loads = refuse
sys.addaudithook(lambda event, arguments: refuse() if event == "pickle.find_class" else None)
from reconciler.cli import run
code = run(sys.argv[1:])
print("loaded", [name for name in ("shelve", "torch", "dill") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def test_no_pass_unpickles_anything(lab):
    """With checkpoints to verify, deeply, and everything else that a pass does."""
    from fuzz import containers

    epoch = lab / "a" / "out" / "epoch_0"
    epoch.mkdir(parents=True)
    (lab / "a" / "finetune.yaml").write_text(
        "output_dir: out\nepochs: 2\nmodel: {lora_rank: 8}\nsave_adapter_weights_only: True\n"
    )
    (epoch / "adapter_model.pt").write_bytes(containers.archive({"x/data.pkl": b"\x80\x02}."}, containers.STORED))
    state = lab / "a" / "out" / "recipe_state" / "recipe_state.pt"
    state.parent.mkdir()
    state.write_bytes(containers.archive({"x/data.pkl": b"\x80\x02}X\x0a\x00\x00\x00epochs_runK\x01s."}, containers.STORED))
    for command in ("diff", "apply"):
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_PICKLE, command, str(lab), "--deep"],
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "loaded []" in done.stderr, done
        assert done.returncode in (0, 1, 4)


def test_the_sources_name_no_module_that_could():
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            modules = [*names, getattr(node, "module", None) or ""] if names else []
            assert not {"pickle", "shelve", "dill", "torch", "marshal"} & {str(module).split(".")[0] for module in modules}, path


# --- the terminal ------------------------------------------------------------------------------------------------


def hostile_ledger(directory: Path) -> None:
    """A history whose every free text steers a terminal; its job ids are ids."""
    step = {"step": "a/finetune", "at": 1.7e9}
    events = [
        {"event": "intent", **step, "attempt": 1, "name": HOSTILE, "definition": HOSTILE, "output_dir": HOSTILE},
        {"event": "refused", **step, "attempt": 1, "message": f"sbatch: error: {HOSTILE}"},
        {"event": "intent", **step, "attempt": 2, "name": HOSTILE},
        {"event": "submitted", **step, "attempt": 2, "job": "7"},
        {
            "event": "ended",
            **step,
            "attempt": 2,
            "job": "7",
            "state": HOSTILE,
            "failure": HOSTILE,
            "ended": 1.7e9,
            "exit_code": HOSTILE,
        },
        {"event": "missing", **step, "attempt": 2},
        {"event": "hold", **step, "user": HOSTILE, "why": HOSTILE},
        {"event": "stands", "at": 1.7e9, "states": {"a/finetune": HOSTILE}},
    ]
    (directory / ".reconcile").mkdir(exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (directory / ".reconcile" / "ledger.jsonl").write_text(lines)


COMMANDS = [
    ("validate",), ("validate", "-v"), ("diff",), ("diff", "-v"), ("status",), ("status", "-v"), ("explain", "a/finetune"), ("apply",),
    ("apply", "-v"), ("hold", "a/finetune"), ("hold", HOSTILE), ("release", "a/finetune"), ("cancel", "a/finetune", "--reason", HOSTILE),
    ("rerun", "a/finetune", "-y"), ("accept", "a/finetune"), ("diff", "--select", HOSTILE), ("diff", HOSTILE), ("diff", f"--{HOSTILE}"), ("accept", "--moved"), (HOSTILE,),
]  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_steers_a_terminal_reaches_it_whatever_the_files_hold(lab, form):
    text = (lab / "experiment_summary.md").read_text().replace("# x", f"# x {HOSTILE}")
    status = f"\n## Fine-tuning Status\n\n| Run Name | Status | Job ID | Notes |\n|---|---|---|---|\n| a | my {TURN}{C1} | {C1} | {C1} |\n"
    (lab / "experiment_summary.md").write_text(text + status, newline="")
    (lab / "a" / "finetune.slurm").write_text(
        f"#!/bin/bash\n#SBATCH --output=/gone{HOSTILE}/%j\n#SBATCH -J '{HOSTILE}'\ntrue\n", newline=""
    )
    (lab / "a" / "finetune.yaml").write_text(f'output_dir: "out {TURN}\\e[2J"\nepochs: 1\n')
    (lab / f"stray{HOSTILE}").mkdir()
    (lab / f"stray{HOSTILE}" / "finetune.slurm").write_text("#!/bin/bash\n")
    (lab / "a" / "eval").mkdir()
    (lab / "a" / "eval" / f"cap{HOSTILE}.slurm").write_text("#!/bin/bash\n")
    hostile_ledger(lab)
    for command, *rest in COMMANDS:
        arguments = [lab, *rest] if command != HOSTILE else []
        asked = ["--output", form] if command not in (HOSTILE,) else []
        no_steering(reconcile(command, *arguments, *asked))
    for log in (lab / "run-torchtune.log", lab / "experiment_summary.md"):
        if log.exists():
            ours = log.read_bytes().decode().replace(text, "").replace(status, "")
            assert CLEAR not in ours
            assert TITLE not in ours


def test_names_of_files_that_are_no_utf8_are_shown_and_cost_no_crash(lab):
    """A directory named in another encoding, as old file systems have them: in messages, in JSON and in the ledger."""
    odd = Path(os.fsdecode(os.fsencode(lab.parent) + b"/caf\xe9"))
    lab.rename(odd)
    for form in ("text", "json"):
        for command in ("validate", "diff", "apply", "status", "apply"):
            said = reconcile(command, odd, "--output", form)
            assert said.code in (0, 1, 4), said
            no_steering(said)
    assert in_a_process("diff", odd, "--output", "json").code in (0, 1)


def test_a_terminal_that_cannot_show_a_sign_gets_an_escape(lab):
    said = in_a_process("diff", lab, PYTHONIOENCODING="ascii")
    assert said.code == 1, said
    assert "+" in said.out


def test_a_bug_is_told_without_steering_the_terminal():
    child = (
        "import reconciler.cli.commands as c, sys\n"
        f"def broken(*a, **k): raise RuntimeError({HOSTILE!r})\n"
        "c.preview = broken; c._scene = lambda asked: None\n"
        "from reconciler.cli import run; sys.exit(run(['diff']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, timeout=60, env=environment, check=False)
    assert done.returncode == 70
    assert b"RuntimeError" in done.stderr
    no_steering(Said(0, done.stdout.decode(), done.stderr.decode()))


@pytest.mark.parametrize("failing", ["squeue", "sbatch", "sacct", "scontrol"])
def test_what_slurm_says_does_not_steer_the_terminal_now_or_later(lab, tmp_path, failing):
    """Commands of Slurm that print escapes where they fail; what they said is kept, and shown again by explain."""
    programs = tmp_path / "bin"
    programs.mkdir()
    answers = {"squeue": "", "sacct": "", "scontrol": "ClusterName = mini\n", "sbatch": "1\n"}
    for name, answer in answers.items():
        said = f"printf %s {json.dumps(answer)!s}" if name != failing else 'cat "$0.said" >&2; exit 1'
        (programs / name).write_text(f"#!/bin/bash\n{said}\n")
        (programs / name).chmod(0o755)
    (programs / f"{failing}.said").write_bytes(f"{failing}: error: Batch job submission failed: {HOSTILE}".encode() + b"\xe9\n")
    more = {"RECONCILE_BACKEND": "cli", "PATH": f"{programs}:{os.environ['PATH']}"}
    for command in (
        ("diff", lab),
        ("apply", lab),
        ("status", lab, "-v"),
        ("explain", lab, "a/finetune"),
        ("apply", lab, "--quiet"),
    ):
        no_steering(reconcile(*command, **more))
        no_steering(reconcile(*command, "--output", "json", **more)) if "--quiet" not in command else None


# --- modes -----------------------------------------------------------------------------------------------------------


def modes_below(directory: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.lstat().st_mode) for path in directory.rglob("*") if not path.is_symlink()}


@pytest.mark.parametrize(("mode", "umask"), [(0o755, 0o000), (0o700, 0o000), (0o700, 0o022), (0o2775, 0o002), (0o750, 0o000)])
def test_what_is_made_is_never_wider_open_than_the_experiment(lab, mode, umask):
    if mode == 0o755:
        (lab / "experiment_summary.md").unlink()
        (lab / "experiment_summary.yaml").write_text("experiment: {name: x}\nruns:\n- {name: a, type: fine-tuned}\n")
    (lab / "a" / "finetune.slurm").write_text("#!/bin/bash\n#SBATCH --output=deep/er/%j.out\ntrue\n")
    torn = lab / "a" / "out" / "epoch_0"
    torn.mkdir(parents=True)
    for directory in (lab, lab / "a", lab / "a" / "out"):
        directory.chmod(mode)
    before = modes_below(lab)
    old = os.umask(umask)
    try:
        said = [reconcile("rerun", lab, "a/finetune", "-y"), reconcile("apply", lab), reconcile("apply", lab)]
    finally:
        os.umask(old)
    assert all(each.code in (0, 4) for each in said), said
    made = {
        path: found for path, found in modes_below(lab).items() if path not in before and "moved-aside" not in str(path.parent)
    }
    assert {".reconcile", "ledger.jsonl", "lock"} <= {path.name for path in made}
    for path, found in made.items():
        assert not found & 0o777 & ~mode, f"{path} is {found:o} in a directory of {mode:o}"
