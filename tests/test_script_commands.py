"""What is said to be certain of a script is what bash does with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from reconciler.script_commands import Command, commands_of

SCRIPTS = [
    "cd b && tune one",
    "cd b || exit 1\ntune one",
    "cd b; tune one; cd ..; tune two; cd c; tune three",
    "(cd b; tune one); tune two",
    "( cd b\n  tune one\n  (cd ../c; tune two)\n  tune three\n)\ntune four",
    "cd b | cat\ntune one",
    "cd b && true & wait\ntune one",
    "{ cd b; tune one; }\ntune two",
    "cd b &&\n  tune one",
    "tune one | tee log |\n  cat\ntune two",
    "tune one > log 2>&1 < /dev/null\ntune two >> log",
    "tune one \\\n  two # three\n# tune four\ntune five#six",
    "echo 'cd b\ntune one'\ntune two",
    'echo "cd b\n\\"tune\\" one"\ntune two',
    "tune 'one two' \"three $HOW\" fo\\ ur '' \"\"",
    "cat > made <<EOF\ncd b\ntune one\nEOF\ntune two",
    "cat <<-'A B' <<C\ncd b\n\tA B\ntune one\nC\ntune two",
    "cat <<< one\ntune two",
    "if cd b; then tune one; fi\ntune two",
    "if true\nthen cd b\nelse\n  cd c\nfi\ntune one",
    "for x in b c; do cd $x; tune one; cd ..; done\ntune two",
    "while true; do\n  tune one\n  break\ndone\ntune two",
    "case b in\n  a) cd c ;;\n  (b) cd b ;;\nesac\ntune one",
    "( case b in a) cd c ;; esac\n  tune one )\ntune two",
    "( cd b\n  case x in a) : ;; esac\n  tune one )\ntune two",
    "[ -d nothing ] &&\n  tune one",
    "one() { cd b; tune one; }\none\ntune two",
    "one()\n(\n  cd b\n  tune one\n)\ntune two",
    "function one() {\n  cd b\n}\ntune one",
    "function one {\n  cd b\n}\ntune one",
    "[ -d nothing ] && cd b\ntune one",
    "[ -d b ] && cd b\ntune one",
    "true || cd b\ntune one",
    "cd nothing && tune one\ntune two",
    "D=b; cd $D; tune $D ${D}",
    "D=b\nif true; then D=c; fi\ncd $D; tune one",
    "D=b\n(D=c)\ncd $D; tune one",
    "D=b\nD+=/../c\ncd $D; tune one",
    "D=b\nunset D\ncd c/$D; tune one",
    "D=(b c)\ncd $D; tune one",
    "D=$(cd c; pwd)\ncd $D; tune one",
    "D=`cd c; pwd`\ncd $D; tune one",
    "export D=b E=c\ncd $D/../$E; tune one",
    "readonly D=b\ncd $D; tune one",
    "read D <<< c\ncd $D; tune one",
    "for D in b c; do :; done\ncd $D; tune one",
    "D=b tune one",
    'cd "$SLURM_SUBMIT_DIR/b"; tune one',
    "cd b; tune $PWD",
    "cd b\ncd -\ntune one",
    "pushd b; tune one; popd; tune two",
    "cd -P b; tune one",
    "command cd b; tune one",
    "tune one; exit 0; tune two",
    "false && exit 0\ntune one",
    "exec tune one\ntune two",
    "! tune one; time tune two",
    "tune one; echo }; tune two",
    "echo done\ntune one",
    "trap 'cd b; tune one' EXIT\ntune two",
    "bash -c 'cd b; tune one'\ntune two",
    "set -e\ncd b && tune one\nmkdir -p d && tune two",
    "tune one &\nwait\ntune two",
    "diff <(cd b; ls) <(ls)\ntune one",
    "echo $((1 + (2 * 3))) \\; tune one; tune two",
    "N=$((1 + 1)) tune one; tune two",
    "N=$((1 << 2))\ncd b; tune one",
    "((N = 3 << (1 + 1)))\ncd b; tune one",
    "for ((i = 1; i << 1 < 4; i++)); do tune one; done\ntune two",
    "((cd b; tune one) ; tune two)\ntune three",
    "; ; )\ntune one",
    "tune one\necho 'not closed\ntune two",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Directories to go to, and a ``tune`` that tells where it was called and with which words."""
    (tmp_path / "bin").mkdir()
    tune = tmp_path / "bin" / "tune"
    tune.write_text(f'#!/bin/bash\nprintf "%s\\t" "$(pwd)" "$@" >> {tmp_path}/called; echo >> {tmp_path}/called\n')
    tune.chmod(0o755)
    for name in ("here/b", "here/c"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def commands(text: str, here: Path) -> list[Command]:
    def enters(target: Path | None, is_certain: bool) -> bool | None:
        return True if target is not None and is_certain and target.is_dir() else None

    return list(commands_of(text, here, here, enters))


def called(place: Path, text: str) -> list[list[str]]:
    """Where ``tune`` was called, and the words behind it."""
    if shutil.which("bash") is None:
        pytest.fail("bash is not here")
    variables = {"PATH": f"{place}/bin:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(place / "here"), "HOW": "so"}
    subprocess.run(["bash", "-c", text], cwd=place / "here", env=variables, capture_output=True, check=False, timeout=30)
    log = place / "called"
    return [line.split("\t")[:-1] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("text", SCRIPTS)
def test_what_is_certain_happens_in_bash_and_where_it_is_said_to(place: Path, text: str) -> None:
    really = called(place, text)
    sure = [found for found in commands(text, place / "here") if found.is_certain and found.words[0] == "tune"]
    is_whole = "nothing &&" not in text and "not closed" not in text and not text.startswith(";")
    for found in sure if is_whole else ():
        words = [word.replace("$HOW", "so") for word in found.words[1:]]
        met = [call for call in really if call[1:] == words]
        assert met, f"{found.words} is said to be certain, and bash ran {really}"
        if found.directory is not None:
            assert os.path.normpath(found.directory) in [call[0] for call in met]


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("cd b && tune one", ["b"]),
        ("cd b || exit 1\ntune one", ["b"]),
        ("cd b; tune one; cd ..; tune two", ["b", "."]),
        ("(cd b && tune one) | tee log; tune two", ["b", "."]),
        ("D=b\ncd $D; tune one > log &", ["b"]),
        ("cat <<EOF\nit's\nEOF\ntune one", ["."]),
        ("N=$((1 << 2))\ncd b; tune one", ["b"]),
        ("((N = 3 << (1 + 1)))\ncd b; tune one", ["b"]),
        ("for ((i = 1; i << 1 < 4; i++)); do tune one; done\ntune two", ["."]),
        ("if true; then\n  echo one\nfi\ncd b\ntune one", ["b"]),
        ("case x in\n  x) cd b ;;\nesac\ntune one", [None]),
        ("[ -d b ] && cd b\ntune one", [None]),
        ("[ -d b ] && tune one", []),
        ("cd nothing\ntune one", [None]),
        ("exit\ntune one", []),
    ],
)
def test_where_commands_surely_run(place: Path, text: str, sure: list[str | None]) -> None:
    here = place / "here"
    found = [each.directory for each in commands(text, here) if each.is_certain and each.words[0] == "tune"]
    assert [path and os.path.normpath(path) for path in found] == [name and os.path.normpath(here / name) for name in sure]


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("cd b", ["b"]),
        ("cd /b; cd c", ["/b", "/b/c"]),
        ("cd $X; cd /b", [None, "/b"]),
        ("cd $X; cd b", [None, None]),
        ("cd -", [None]),
        ("cd", [None]),
        ("cd b c", [None]),
        ("cd ~/b", [None]),
        ("cd 'b\0c'", [None]),
        ("pushd b", [None]),
        ("builtin cd b", [None]),
        ("ls b", []),
    ],
)
def test_where_it_goes_is_asked_of_each_cd(tmp_path: Path, text: str, targets: list[str | None]) -> None:
    asked: list[Path | None] = []
    list(commands_of(text, tmp_path, tmp_path, lambda target, certain: asked.append(target) or target is not None or None))
    assert asked == [name and tmp_path / name for name in targets]


def test_a_cd_that_surely_fails_leaves_the_script_where_it_is(tmp_path: Path) -> None:
    (_, tune) = commands_of("cd b\ntune one", tmp_path, tmp_path, lambda target, certain: False)
    assert tune.directory == tmp_path


def test_each_here_document_has_its_own_end(tmp_path: Path) -> None:
    text = "cat <<X\na\nX\nb\ncat <<X <<Y\nc\nX\nd\nY\ne\ncat <<Z\nf"
    assert [found.words[0] for found in commands(text, tmp_path)] == ["cat", "b", "cat", "e", "cat"]


def test_each_command_has_the_line_that_it_begins_in(tmp_path: Path) -> None:
    text = "#!/bin/bash\n\na \\\n b\n'c\nd' e; f\ncat <<X\ng\nX\nh |\n\n  i\n"
    assert [(found.words[0], found.line) for found in commands(text, tmp_path)] == [
        ("a", 3), ("c\nd", 5), ("f", 6), ("cat", 7), ("h", 10), ("i", 12),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "piece", ["(", ")", "! ", "a&", "a|", "a && ", "'", '"', "<<a\n", "$A ", "{ ", "if ", "A=$A$A\n", "\\\n"]
)
def test_a_script_made_to_hurt_takes_no_longer_than_its_length(tmp_path: Path, piece: str) -> None:
    text = "A=" + "x" * 4000 + "\n" + piece * ((1 << 20) // len(piece))
    assert sum(len(found.words) for found in commands(text, tmp_path)) < 1 << 20
