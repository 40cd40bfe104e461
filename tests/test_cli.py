"""The command line, as a person or a script meets it: exit codes, JSON, errors; on the local backend."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from reconciler.cli import run
from reconciler.schemas import schema

REPOSITORY = Path(__file__).resolve().parent.parent


def reconcile(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reconciler", *map(str, arguments)]
    environ = {**os.environ, **environment}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=environ, check=False
    )


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example experiment on a disk of its own, with a local cluster of its own."""
    monkeypatch.setenv("RECONCILE_LOCAL_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("RECONCILE_BACKEND", "local")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STANDIN_SECONDS", "0")
    subprocess.run([sys.executable, REPOSITORY / "examples/new_experiment.py", tmp_path / "lab"], check=True, capture_output=True)
    return tmp_path / "lab" / "cap_4L_lora_lr"


def test_diff_of_a_new_experiment_is_pending_valid_json_and_changes_nothing(example):
    before = sorted(example.rglob("*"))
    shown = reconcile("diff", example, "--output", "json")
    assert shown.returncode == 1, shown.stderr
    answer = json.loads(shown.stdout)
    jsonschema.validate(answer, schema("actions"))
    assert len(answer["actions"]) == 9
    assert sorted(example.rglob("*")) == before


def test_apply_wait_brings_the_example_to_its_end(example):
    settings = "backend: local\nstagger: 0s\npoll: 1s\nsettle: 2s\nmax_in_flight: 2\n"
    (example / "reconcile.yaml").write_text(settings)
    applied = reconcile("apply", example, "--wait")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    after = reconcile("diff", example)
    assert after.returncode == 0, after.stdout
    assert "nothing to do" in after.stdout
    status = reconcile("status", example, "--output", "json")
    answer = json.loads(status.stdout)
    jsonschema.validate(answer, schema("status"))
    assert answer["converged"]
    assert {step["attempts"] for step in answer["steps"]} == {1}
    assert (example / "experiment_summary.md").read_text().count("COMPLETED") == 9
    explained = reconcile("explain", example, "r8_lr1e-5/finetune")
    assert "evidence" in explained.stdout


def test_apply_wait_reads_the_settings_anew_before_each_pass_and_waits_out_their_faults(example, tmp_path):
    settings, quick = example / "reconcile.yaml", "backend: local\nstagger: 0s\npoll: 1s\nsettle: 2s\n"
    settings.write_text(f"{quick}max_in_flight: 1\n")
    said = tmp_path / "said"
    command = [sys.executable, "-m", "reconciler", "apply", str(example), "--wait"]
    with (
        said.open("w") as stderr,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr) as waiting,
    ):
        assert waiting.stdout.readline()  # the first pass is over
        settings.write_text("stagger: 5 parsecs\nsettle: 5 parsecs\n")
        end = time.monotonic() + 60
        while said.read_text().count("parsecs") < 2:
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.1)
        settings.write_text(f"{quick}max_in_flight: 9\n")
        shown = waiting.stdout.read().decode()
        assert waiting.wait(60) == 0
    told = said.read_text().splitlines()
    assert all(line.startswith(f"reconcile: {settings}:") for line in told[:2])
    assert "\\u" not in said.read_text()
    assert shown.count("submitted as job") >= 4
    assert reconcile("diff", example).returncode == 0


@pytest.mark.parametrize("words", [["diff"], ["status"], ["validate", "-v"]], ids=" ".join)
def test_a_reader_that_is_gone_is_no_pending_step(example, words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "reconciler", *words, str(example)]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writer)
    assert (said.returncode, said.stderr) == (0, b"")


def test_a_home_directory_that_nothing_tells_is_one_clear_error(example, monkeypatch, capsys):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert run(["diff", str(example)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "set HOME" in said


def test_an_invalid_document_is_exit_2_with_its_line_and_no_traceback(example):
    document = example / "experiment_summary.md"
    document.write_text(document.read_text().replace("| Fine-tuned |", "| Finetuned-ish |", 1))
    shown = reconcile("diff", example)
    assert shown.returncode in (1, 2)
    assert "Finetuned-ish" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert reconcile("validate", example).returncode == 2


def test_the_experiment_may_be_left_out_where_one_stands_in_it(example, monkeypatch):
    monkeypatch.chdir(example)
    step = "r8_lr1e-5/finetune"
    assert reconcile("diff").returncode == 1
    assert step in reconcile("explain", step).stdout
    assert reconcile("hold", step, "--reason", "not yet").returncode == 0
    assert "not yet" in reconcile("explain", example, step).stdout
    assert reconcile("release", step).returncode == 0
    assert reconcile("hold").returncode == 2


def test_every_command_speaks_json_in_its_published_form(example):
    step = "r8_lr1e-5/finetune"
    for form, *command in (
        ("problems", "validate", example),
        ("explanation", "explain", example, step),
        ("words", "hold", example, step),
        ("explanation", "explain", example, step),
        ("words", "release", example, step),
        ("words", "release", example),
        ("words", "pause", example, "--until", "+2d", "--reason", "maintenance"),
        ("explanation", "explain", example, step),
        ("status", "status", example),
        ("words", "resume", example),
        ("words", "rerun", example, "--stale"),
    ):
        told = reconcile(*command, "--output", "json")
        assert told.returncode == 0, told.stderr
        jsonschema.validate(json.loads(told.stdout), schema(form))


def test_quiet_says_nothing_where_nothing_changed_and_verbose_says_more(example):
    (example / "stray").mkdir()
    (example / "stray" / "finetune.slurm").write_text("#!/bin/bash\n")
    (example / "reconcile.yaml").write_text("backend: local\nstagger: 0s\n")
    reconcile("hold", example, "*", "--yes")
    first = reconcile("apply", example, "--quiet")
    assert "stray" in first.stderr
    second = reconcile("apply", example, "--quiet")
    assert (second.stdout, second.stderr, second.returncode) == ("", "", 4)
    assert "r8_lr1e-5/finetune" in reconcile("status", example, "-v").stdout
    assert "r8_lr1e-5/finetune" in reconcile("validate", example, "-v").stdout
    assert reconcile("status", example, "--select", "r8_*/finetune").stdout.count("Held") == 2


def test_an_empty_directory_and_an_unknown_option_are_exit_2(tmp_path):
    assert reconcile("diff", tmp_path).returncode == 2
    assert reconcile("diff", "--nonsense").returncode == 2


def test_auto_without_slurm_stops_with_exit_3_and_names_local(example):
    bare = {"PATH": str(Path(sys.executable).parent), "RECONCILE_BACKEND": "auto"}
    (example / "reconcile.yaml").unlink(missing_ok=True)
    shown = reconcile("diff", example, **bare)
    assert shown.returncode == 3
    assert "local" in shown.stderr


def test_bad_settings_name_file_line_and_what_is_accepted(example):
    (example / "reconcile.yaml").write_text("backend: local\nstager: 5s\n")
    shown = reconcile("diff", example)
    assert shown.returncode == 2
    assert "reconcile.yaml:2" in shown.stderr
    assert "stagger" in shown.stderr


STEP = "r8_lr1e-5/finetune"


def test_outside_an_experiment_it_is_said_that_there_is_none(example, monkeypatch):
    monkeypatch.chdir(example.parent)
    for words in (("explain", STEP), ("hold", "r8_lr1e-5"), ("release", "typo_exp"), ("rerun", "--stale", "typo_exp")):
        told = reconcile(*words)
        assert told.returncode == 2
        assert f"{words[-1]!r} is no experiment, and this directory is none either" in told.stderr
    for words in (("hold",), ("release",), ("rerun", "--stale")):
        assert "this directory is no experiment" in reconcile(*words).stderr
    assert "name at least one step" in reconcile("hold", example).stderr
    monkeypatch.chdir(example)
    assert "no step matches 'typo_exp'" in reconcile("release", "typo_exp").stderr
    assert not (example / ".reconcile" / "ledger.jsonl").exists()


def test_a_word_that_does_not_ask_tells_what_it_did_once_and_verbose_shows_it_before(example):
    held = reconcile("hold", example, STEP, "--reason", "new data")
    assert held.stdout == f"{STEP}: held until you release it\n"
    assert held.stderr == ""
    verbose = reconcile("hold", example, STEP, "-v")
    assert verbose.stderr.startswith(f"hold {STEP} (Held: held by ")
    assert "new data" in reconcile("status", example, "--select", "r8_lr1e-5").stdout
    quiet = reconcile("release", example, STEP, "--quiet")
    assert (quiet.stdout, quiet.stderr, quiet.returncode) == ("", "", 0)
    assert reconcile("resume", example).stderr == ""


def test_a_runs_name_stands_for_its_steps_and_select_takes_it_too(example):
    told = json.loads(reconcile("hold", example, "r8_lr1e-5", "--output", "json").stdout)
    assert [each["step"] for each in told["done"]] == [STEP, "r8_lr1e-5/eval/capitalization_epoch0"]
    shown = json.loads(reconcile("status", example, "--select", "r8_lr1e-5", "--output", "json").stdout)
    assert [step["condition"] for step in shown["steps"]] == ["Held", "Held"]
    slip = reconcile("hold", example, "r8_lr1e5")
    assert slip.returncode == 2
    assert "did you mean `r8_lr1e-5`" in slip.stderr


def test_a_runs_name_may_end_in_the_slash_that_a_shell_completes_it_with(example):
    reconcile("hold", f"{example}/", "r8_lr1e-5/")
    shown = json.loads(reconcile("status", example, "--select", "r8_lr1e-5/", "--output", "json").stdout)
    assert [step["condition"] for step in shown["steps"]] == ["Held", "Held"]
    assert "r8_lr5e-5 is in the document" in reconcile("apply", example, "--prune", "r8_lr5e-5/").stderr
    refused = reconcile("rename", f"{example}/", "r16_lr5e-5/", "r16/", "-y")
    assert "r16_lr5e-5/finetune.slurm:12" in refused.stderr


def test_of_options_that_contradict_one_another_none_wins(example):
    both = reconcile("adopt", example, "--copied", "--moved")
    assert (both.returncode, "--copied and --moved: say one thing at a time" in both.stderr) == (2, True)
    twice = reconcile("apply", example, "--select", "r8_lr1e-5", "--select", "1B_base")
    assert (twice.returncode, "r8_lr1e-5 and 1B_base" in twice.stderr) == (2, True)
    assert not (example / ".reconcile").exists()


def test_a_fault_of_a_run_that_is_done_is_a_warning(example):
    (example / "reconcile.yaml").write_text("backend: local\nstagger: 0s\npoll: 1s\nsettle: 2s\nmax_in_flight: 2\n")
    reconcile("apply", example, "--wait", "--select", "1B_base")
    (example / "1B_base/eval/capitalization_base.slurm").unlink()
    (example / "r8_lr1e-5/finetune.yaml").write_text("epochs: 0\n")
    told = reconcile("diff", example).stderr.splitlines()
    assert [line.startswith("reconcile: warning: ") for line in told if "capitalization of 1B_base" in line] == [True]
    assert [line.startswith("reconcile: warning: ") for line in told if "r8_lr1e-5/finetune.yaml" in line] == [False]


def test_validate_reads_the_settings_as_the_backend_does(example):
    (example / "reconcile.yaml").write_text("poll: 1s\n")
    assert reconcile("validate", example, "--backend", "local").returncode == 0
    assert reconcile("validate", example, "--backend", "cli").returncode == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_output_that_cannot_be_written_is_said_to_be_the_output(example, form):
    command = [sys.executable, "-m", "reconciler", "diff", str(example), "--output", form]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert told.returncode == 3
    assert "reconcile: the output cannot be written: No space left on device" in told.stderr
    assert "Errno" not in told.stderr


def test_rename_without_the_new_name_asks_for_it(example):
    told = reconcile("rename", example, "r8_lr1e-5")
    assert (told.returncode, "say the run's name and its new one" in told.stderr) == (2, True)


def test_what_a_glob_skips_is_named_apart_in_json(example):
    (example / "reconcile.yaml").write_text("backend: local\nstagger: 0s\npoll: 1s\nsettle: 2s\nmax_in_flight: 2\n")
    reconcile("apply", example, "--wait", "--select", "1B_base")
    held = reconcile("hold", example, "*", "--output", "json")
    told = json.loads(held.stdout)
    jsonschema.validate(told, schema("words"))
    assert [each["step"] for each in told["skipped"]] == ["1B_base/eval/capitalization_base"]
    assert len(told["done"]) == 8
    assert "left as it is: is done" in reconcile("hold", example, "*").stdout


def test_an_orphan_is_shown_before_it_is_pruned_and_why_is_kept(example, monkeypatch):
    monkeypatch.setenv("STANDIN_SECONDS", "60")
    (example / "reconcile.yaml").write_text("backend: local\nstagger: 0s\nmax_in_flight: 1\n")
    reconcile("apply", example, "--select", STEP)
    document = example / "experiment_summary.md"
    whole = document.read_text()
    document.write_text("".join(line for line in whole.splitlines(True) if not line.startswith("| r8_lr1e-5 ")))
    assert "--prune" in reconcile("apply", example, "--reason", "dropped").stderr
    told = reconcile("apply", example, "--prune", "r8_lr1e-5", "--reason", "dropped", "--select", "1B_base")
    assert re.search(rf"cancel job \S+ .* of {STEP}, which the document does not have", told.stderr)
    document.write_text(whole)
    assert "dropped" in reconcile("explain", example, STEP).stdout
    reconcile("cancel", example, "1B_base")


def test_validate_speaks_json_for_a_document_that_cannot_be_read(example):
    document = example / "experiment_summary.md"
    document.write_text(document.read_text().replace("| Fine-tuned |", "| Finetuned-ish |", 1))
    told = reconcile("validate", example, "--output", "json")
    answer = json.loads(told.stdout)
    jsonschema.validate(answer, schema("problems"))
    assert told.returncode == 2
    assert any("Finetuned-ish" in problem["message"] for problem in answer["problems"])
    (example / "reconcile.yaml").write_text("backend: local\nstager: 5s\n")
    answer = json.loads(reconcile("validate", example, "--output", "json").stdout)
    assert answer["problems"][0]["line"] == 2


def test_usage_tells_what_each_command_takes():
    for command, usage in (
        ("hold", "[EXPERIMENT] STEP..."), ("explain", "[EXPERIMENT] STEP..."), ("free", "[EXPERIMENT] STEP..."),
        ("release", "[EXPERIMENT] [STEP]..."), ("rerun", "[EXPERIMENT] [STEP]..."), ("accept", "[EXPERIMENT] [STEP]..."),
        ("adopt", "[EXPERIMENT]"), ("pause", "[EXPERIMENT]"), ("rename", "[EXPERIMENT] OLD NEW"), ("apply", "[EXPERIMENT]"),
    ):  # fmt: skip
        shown = reconcile(command, "--help").stdout
        assert shown.splitlines()[0] == f"Usage: reconcile {command} [OPTIONS] {usage}"
        assert {"--quiet", "--verbose", "--output"} <= set(shown.replace(",", " ").split())


def test_explain_tells_more_or_less(example):
    shown = reconcile("explain", example, STEP).stdout
    assert reconcile("explain", example, STEP, "--quiet").stdout.splitlines() == shown.splitlines()[:2]
    assert "defined by" in reconcile("explain", example, STEP, "-v").stdout
    assert "defined by" not in shown


def test_help_names_every_command():
    shown = reconcile("--help").stdout
    for command in ("diff", "apply", "status", "explain", "validate", "hold", "release", "cancel", "rerun", "accept"):
        assert command in shown
    for command in ("free", "pause", "resume", "adopt"):
        assert command in shown


def test_what_asks_is_refused_without_a_terminal_and_without_yes(example):
    """Nothing finished is done again or deleted by a script that did not say so."""
    settings = "backend: local\nstagger: 0s\npoll: 1s\nsettle: 2s\nmax_in_flight: 2\n"
    (example / "reconcile.yaml").write_text(settings)
    assert reconcile("apply", example, "--wait").returncode == 0
    ledger = example / ".reconcile" / "ledger.jsonl"
    before = ledger.read_bytes()
    for words in (("rerun", example, "r8_lr1e-5/eval/*"), ("free", example, "*/finetune")):
        refused = reconcile(*words)
        assert refused.returncode == 2
        assert "say --yes" in refused.stderr
        assert "r8_lr1e-5" in refused.stderr
    assert ledger.read_bytes() == before
    checkpoints = list(example.parent.rglob("ck-out-*/epoch_0/*.safetensors"))
    freed = reconcile("free", example, "*/finetune", "--yes", "--reason", "the quota", "--output", "json")
    assert freed.returncode == 0, freed.stderr
    jsonschema.validate(json.loads(freed.stdout), schema("words"))
    assert len(checkpoints) >= 4
    assert not any(path.exists() for path in checkpoints)
    assert reconcile("diff", example).returncode == 0
    assert "freed by" in reconcile("explain", example, "r8_lr1e-5/finetune").stdout
    task = next(example.parent.rglob("tasks/cap_task.py"))
    task.write_text(task.read_text() + "\n# changed\n")
    shown = reconcile("diff", example)
    assert shown.returncode == 4
    assert "5 evaluations used an older version (task file cap_task.py)" in shown.stdout
    assert "its checkpoint is gone" in reconcile("rerun", example, "--stale", "--yes").stderr
    assert reconcile("rerun", example, "1B_base/*", "--stale", "--yes").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ("pause", "--until", "someday"),
        ("adopt",),
        ("adopt", "--moved"),
        ("apply", "--prune", "nobody"),
        ("cancel", "nobody"),
        ("free", "nobody/*"),
        ("rerun", "--stale", "nobody/*"),
        ("pause", ".", "step"),
    ],
)
def test_a_word_that_makes_no_sense_is_exit_2_with_one_sentence(example, monkeypatch, words):
    monkeypatch.chdir(example)
    told = reconcile(*words)
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    assert told.stderr.strip()
