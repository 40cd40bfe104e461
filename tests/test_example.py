"""The example and its stand-ins: what their scripts leave is what the real tools left in the samples."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
SAMPLES = REPOSITORY / "tests" / "samples"


def new_experiment(dest: Path, *options: str) -> Path:
    command = [sys.executable, EXAMPLES / "new_experiment.py", dest, *options]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.removesuffix("\n"))


def run_script(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a batch script as Slurm does: from its own directory."""
    return subprocess.run(
        ["bash", script.name],
        cwd=script.parent,
        env=os.environ | {"STANDIN_SECONDS": "0.05"} | environment,
        umask=0o022,
        capture_output=True,
        text=True,
        check=False,
    )


def scripts(experiment: Path) -> list[Path]:
    """Every batch script, fine-tunes before the evaluations that need them."""
    return sorted(experiment.glob("*/finetune.slurm")) + sorted(experiment.glob("*/eval/*.slurm"))


def files(directory: Path) -> dict[str, int]:
    """Each file below a directory with its permissions."""
    return {str(p.relative_to(directory)): stat.S_IMODE(p.stat().st_mode) for p in directory.rglob("*") if p.is_file()}


def read_log(path: Path) -> dict[str, Any]:
    """The entries of an ``.eval`` file in their order; each must be zstd and match its size and checksum."""
    content = path.read_bytes()
    entries: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            assert entry.compress_type == 93
            start = entry.header_offset + 30 + len(entry.filename)
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(content[start : start + entry.compress_size])
            assert (len(raw), zlib.crc32(raw)) == (entry.file_size, entry.CRC)
            entries[entry.filename] = json.loads(raw)
    return entries


def shape(value: Any) -> Any:
    """The keys of a JSON value, without what varies with model or task."""
    free = {"model_usage", "model_args", "metadata", "task_args", "task_args_passed", "model_generate_config"}
    if isinstance(value, dict):
        return {key: None if key in free else shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real tools' output, unpacked."""
    directory = tmp_path_factory.mktemp("samples")
    for archive in ("torchtune", "inspect"):
        with tarfile.open(SAMPLES / f"{archive}.tar.gz") as tar:
            tar.extractall(directory, filter="tar") if hasattr(tarfile, "tar_filter") else tar.extractall(directory)
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example after every script ran once, each in its turn."""
    experiment = new_experiment(tmp_path_factory.mktemp("lab"))
    for script in scripts(experiment):
        assert run_script(script).returncode == 0, script
    return experiment


def test_each_script_of_the_example_ran_once_and_was_counted(finished: Path) -> None:
    counted = (finished.parent / "jobs.log").read_text().splitlines()
    assert sorted(counted) == sorted(str(script.relative_to(finished).with_suffix("")) for script in scripts(finished))
    assert len(counted) == 9


def test_the_example_names_no_path_outside_of_its_lab(finished: Path) -> None:
    for script in scripts(finished):
        assert "@ROOT@" not in script.read_text()
    assert f"`{finished.parent}/ck-outputs/{finished.name}`" in (finished / "experiment_summary.md").read_text()


@pytest.mark.parametrize(("sample", "run"), [("complete", "tiny_run1"), ("adapter_only", "adapter_only")])
def test_a_fine_tune_of_a_real_configuration_leaves_the_real_files(samples: Path, tmp_path: Path, sample: str, run: str) -> None:
    """The very ``finetune.yaml`` of a sample gives the sample's files: names, permissions, sizes, and texts."""
    real = samples / "torchtune" / sample / f"ck-out-{run}"
    lab, work = tmp_path / "lab", tmp_path / run
    new_experiment(lab)
    shutil.copytree(samples / "torchtune" / "base-tiny", tmp_path / "base" / "tiny")
    work.mkdir()
    config = (samples / "torchtune" / sample / "run" / "finetune.yaml").read_text()
    (work / "finetune.yaml").write_text(config.replace("/scratch/lab", str(tmp_path)))
    (work / "job.sh").write_text(
        f'source "{lab}/venv/bin/activate"\ntune run lora_finetune_single_device --config finetune.yaml\n'
    )

    job = run_script(work / "job.sh")

    assert job.returncode == 0, job.stderr
    ours = tmp_path / "out" / f"ck-out-{run}"
    unnumbered = {re.sub(r"log_\d+", "log_N", name): mode for name, mode in files(ours).items()}
    assert unnumbered == {re.sub(r"log_\d+", "log_N", name): mode for name, mode in files(real).items()}
    for name in files(real):
        if not name.startswith("logs/"):
            mine, theirs = (ours / name).read_bytes(), (real / name).read_bytes()
            if name.endswith((".pt", ".safetensors")):
                assert len(mine) == len(theirs), name
            else:
                assert mine.decode().replace(str(tmp_path), "/scratch/lab") == theirs.decode(), name


def test_weights_are_whole_and_newer_than_the_launch(finished: Path) -> None:
    output = finished.parent / "ck-outputs" / finished.name / "ck-out-r8_lr1e-5"
    launched = (output / "torchtune_config.yaml").stat().st_mtime_ns
    weights = sorted((output / "epoch_0").glob("*.safetensors"))
    assert [path.name for path in weights] == ["adapter_model.safetensors", "model-00001-of-00001.safetensors"]
    for path in weights:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        assert len(content) == 8 + length + max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
        assert path.stat().st_mtime_ns >= launched
    base = finished.parent / "models" / "Llama-3.2-1B-Instruct" / "tokenizer.json"
    assert (output / "epoch_0" / "tokenizer.json").stat().st_mtime == base.stat().st_mtime


def test_runs_end_in_different_weights(finished: Path) -> None:
    shards = finished.parent.glob("ck-outputs/*/*/epoch_0/model-*.safetensors")
    assert len({path.read_bytes() for path in shards}) == 4


@pytest.mark.parametrize("epochs", [2, 4])
def test_recipe_state_says_how_many_epochs_have_run_and_passes_its_checksums(tmp_path: Path, epochs: int) -> None:
    experiment = new_experiment(tmp_path / "lab", "--run", "r8", "--epochs", str(epochs))
    assert run_script(experiment / "r8" / "finetune.slurm").returncode == 0
    output = tmp_path / "lab" / "ck-outputs" / experiment.name / "ck-out-r8"
    assert sorted(path.name for path in output.glob("epoch_*")) == [f"epoch_{n}" for n in range(epochs)]
    with zipfile.ZipFile(output / "recipe_state" / "recipe_state.pt") as archive:
        assert archive.testzip() is None
        pickle = archive.read("recipe_state/data.pkl")
    said = re.search(rb"epochs_runr....K(.)", pickle, re.DOTALL)
    assert said is not None
    assert said[1][0] == epochs - 1


def test_the_launched_configuration_means_what_finetune_yaml_says(finished: Path) -> None:
    output = finished.parent / "ck-outputs" / finished.name / "ck-out-r16_lr5e-5"
    yaml = YAML(typ="safe")
    written = yaml.load(finished / "r16_lr5e-5" / "finetune.yaml")
    assert yaml.load(output / "torchtune_config.yaml") == written
    assert written["optimizer"]["lr"] == 5e-5


def test_an_evaluation_leaves_a_log_of_the_real_structure(samples: Path, finished: Path) -> None:
    (log,) = (finished / "r8_lr1e-5" / "eval" / "logs").glob("*.eval")
    (sample,) = (samples / "torchtune" / "complete" / "run" / "eval" / "logs").glob("*_tiny_2b8d*.eval")
    (success,) = (samples / "inspect" / "success").glob("*.eval")
    ours, theirs = read_log(log), read_log(sample)
    kinds = [{re.sub(r"\d+", "N", name) for name in entries} for entries in (ours, theirs, read_log(success))]
    assert kinds[0] == kinds[1] == kinds[2]
    assert next(iter(ours)) == "_journal/start.json"
    assert list(ours)[-3:] == ["summaries.json", "reductions.json", "header.json"]
    for name in ours.keys() & theirs.keys():
        assert shape(ours[name]) == shape(theirs[name]), name


def test_a_log_names_its_checkpoint_and_ends_complete(finished: Path) -> None:
    (log,) = (finished / "r8_lr5e-5" / "eval" / "logs").glob("*.eval")
    header = read_log(log)["header.json"]
    checkpoint = finished.parent / "ck-outputs" / finished.name / "ck-out-r8_lr5e-5" / "epoch_0"
    assert header["status"] == "success"
    assert header["eval"]["model"] == "hf/local"
    assert header["eval"]["model_args"] == {"model_path": str(checkpoint)}
    assert header["eval"]["task"] == header["eval"]["task_registry_name"] == "capitalization"
    assert header["results"]["completed_samples"] == header["results"]["total_samples"] == header["eval"]["dataset"]["samples"]


def test_the_base_model_is_evaluated_without_a_checkpoint(finished: Path) -> None:
    (log,) = (finished / "1B_base" / "eval" / "logs").glob("*.eval")
    evaluated = Path(read_log(log)["header.json"]["eval"]["model_args"]["model_path"])
    assert evaluated == finished.parent / "models" / "Llama-3.2-1B-Instruct"


def test_evaluating_a_checkpoint_that_is_missing_or_torn_fails_and_leaves_no_log(tmp_path: Path) -> None:
    experiment = new_experiment(tmp_path / "lab", "--run", "r8")
    evaluation = experiment / "r8" / "eval" / "capitalization_epoch0.slurm"
    assert run_script(evaluation).returncode == 1
    assert run_script(experiment / "r8" / "finetune.slurm").returncode == 0
    (shard,) = (tmp_path / "lab" / "ck-outputs").glob("*/*/epoch_0/model-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    torn = run_script(evaluation)
    assert torn.returncode == 1
    assert str(shard) in torn.stderr
    assert not (experiment / "r8" / "eval" / "logs").exists()


def test_the_run_that_is_to_fail_dies_before_its_checkpoint_and_no_other_does(tmp_path: Path) -> None:
    experiment = new_experiment(tmp_path / "lab")
    outputs = tmp_path / "lab" / "ck-outputs" / experiment.name
    failed = run_script(experiment / "r8_lr1e-5" / "finetune.slurm", STANDIN_FAIL="r8_lr1e-5")
    assert failed.returncode == 1
    assert "RuntimeError" in failed.stderr
    assert sorted(path.name for path in (outputs / "ck-out-r8_lr1e-5").iterdir()) == ["logs", "torchtune_config.yaml"]
    assert run_script(experiment / "r8_lr5e-5" / "finetune.slurm", STANDIN_FAIL="r8_lr1e-5").returncode == 0


def test_an_evaluation_that_is_to_fail_exits_0_and_says_error_in_its_log(samples: Path, tmp_path: Path) -> None:
    """As the real one does: Slurm sees nothing of it."""
    experiment = new_experiment(tmp_path / "lab")
    assert run_script(experiment / "1B_base" / "eval" / "capitalization_base.slurm", STANDIN_FAIL="1B_base").returncode == 0
    (log,) = (experiment / "1B_base" / "eval" / "logs").glob("*.eval")
    (sample,) = (samples / "torchtune" / "complete" / "run" / "eval" / "logs").glob("*_bad_*.eval")
    ours, theirs = read_log(log), read_log(sample)
    assert ours["header.json"]["status"] == theirs["header.json"]["status"] == "error"
    assert ours["header.json"].keys() == theirs["header.json"].keys()
    assert "reductions.json" not in ours


def test_a_killed_evaluation_leaves_a_readable_log_without_header(tmp_path: Path) -> None:
    experiment = new_experiment(tmp_path / "lab")
    logs = experiment / "1B_base" / "eval" / "logs"
    script = logs.parent / "capitalization_base.slurm"
    script.write_text(script.read_text().replace("inspect eval", "exec inspect eval"))
    job = subprocess.Popen(["bash", script], env=os.environ | {"STANDIN_SECONDS": "300"}, cwd=script.parent)
    deadline = time.monotonic() + 20
    try:
        while not any(path.stat().st_size for path in logs.glob("*.eval")):
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        job.kill()
        job.wait()
    (log,) = logs.glob("*.eval")
    assert list(read_log(log)) == ["_journal/start.json"]


def test_names_with_spaces_and_signs_are_quoted_everywhere(tmp_path: Path) -> None:
    names = ["Größe 1B", "lr=1e-5,r=8", "a+b@c"]
    experiment = new_experiment(tmp_path / "my lab", "--odd", *(word for name in names for word in ("--run", name)))
    for script in scripts(experiment):
        job = run_script(script)
        assert job.returncode == 0, job.stderr
    for name in names:
        assert (tmp_path / "my lab" / "ck-outputs" / experiment.name / f"ck-out-{name}" / "epoch_1").is_dir()
        assert f"{name}/finetune" in (tmp_path / "my lab" / "jobs.log").read_text().splitlines()
        for epoch in (0, 1):
            assert f"{name}/eval/twins_task_epoch{epoch}" in (tmp_path / "my lab" / "jobs.log").read_text().splitlines()


def test_a_large_experiment_in_the_odd_form_has_every_script_that_its_document_plans(tmp_path: Path) -> None:
    experiment = new_experiment(tmp_path / "lab", "--runs", "30", "--epochs", "2", "--odd", "--crlf")
    document = (experiment / "experiment_summary.md").read_bytes()
    assert document.count(b"\n") == document.count(b"\r\n")
    text = document.decode()
    assert "## All Runs (31 total)" in text
    assert text.count("| Fine-tuned |") == 30 + 1  # the last is in the code fence, and means nothing
    assert len(list(experiment.glob("*/finetune.slurm"))) == 30
    assert len(list(experiment.glob("*/eval/*_epoch*.slurm"))) == text.count("✓ epoch 0,1 |") * 2 + text.count("✓ epoch 1 |")
    assert {path.name for path in experiment.glob("*/eval/*_base.slurm")} == {"twins_task_base.slurm", "twins_unseen_base.slurm"}


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(subprocess.CalledProcessError):
        new_experiment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_stand_ins_share_no_code_with_what_judges_them() -> None:
    for source in (*(EXAMPLES / "trainers").glob("[a-z]*"), EXAMPLES / "new_experiment.py"):
        if source.is_file():
            assert not re.search(r"^\s*(import|from)\s+reconciler", source.read_text(), re.MULTILINE), source
