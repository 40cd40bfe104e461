"""pyslurm itself, before any backend of ours: as an ordinary user it submits, lists the queue and asks the accounting.

What the backend relies on, and what it has to work around, is pinned here as it was measured with pyslurm 25.11.2 on Slurm 24.11.
"""

from __future__ import annotations

import json

import pytest

SCRIPT = "#!/bin/sh\nenv\numask\nexit 3\n"


def ask(person, code: str, timeout: float = 60):
    """What a piece of Python of this user's, in which ``pyslurm`` is imported, leaves in ``answer``."""
    (person.home / "probe.sh").write_text(SCRIPT)
    words = "import json, os, sys, time, pyslurm\nhere = os.getcwd()\nanswer = None\n"
    done = person.run(person.install / "venv/bin/python", "-c", f"{words}{code}\nprint(json.dumps(answer))", timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SUBMIT = """
def submit(**options):
    # Never "ALL", the default: slurmctld 24.11 refuses it, "I/O error writing script/environment to file" (2019).
    options.setdefault("environment", dict(os.environ))
    return pyslurm.JobSubmitDescription(script=here + "/probe.sh", working_directory=here, **options).submit()

def finish(job):
    while pyslurm.Jobs.load()[job].state not in ("COMPLETED", "FAILED", "CANCELLED"):
        time.sleep(0.2)
"""


def test_a_job_is_submitted_and_seen_in_the_queue_and_in_the_accounting(person):
    job, queued, accounted = ask(
        person,
        SUBMIT
        + """
job = submit(name="lr=1e-5, größe")
finish(job)
queued = pyslurm.Jobs.load()[job]
for _ in range(50):
    accounted = pyslurm.db.Jobs.load(pyslurm.db.JobFilter(ids=[job])).get(job)
    if accounted and accounted.end_time:
        break
    time.sleep(0.2)
answer = [job] + [[j.id, j.name, j.state, j.exit_code, j.exit_code_signal, j.user_name, j.working_directory] for j in (queued, accounted)]
""",
    )
    assert queued == accounted == [job, "lr=1e-5, größe", "FAILED", 3, 0, person.name, str(person.home)]


def test_a_job_is_held_begun_later_and_never_requeued_as_asked(person):
    answer = ask(
        person,
        SUBMIT
        + """
held, later = submit(priority=0), submit(begin_time=int(time.time()) + 3600, is_requeueable=False)
jobs = pyslurm.Jobs.load()
answer = [jobs[held].state_reason, jobs[later].state_reason, jobs[later].start_time > time.time() + 3000, jobs[later].is_requeueable]
pyslurm.Job(held).release()
finish(held)
pyslurm.Job(later).cancel()
pyslurm.Job(later).cancel()  # of a job that has ended: no error
answer.append(pyslurm.Jobs.load()[later].state)
""",
    )
    assert answer == ["JobHeldUser", "BeginTime", True, False, "CANCELLED"]


def test_no_time_window_of_the_accounting_shows_a_job_that_was_never_eligible_but_its_id_does(person):
    """And there is no filter by state, which makes sacct show them."""
    by_time, by_id, states = ask(
        person,
        SUBMIT
        + """
now = int(time.time())
held = submit(priority=0)
for _ in range(50):
    by_id = list(pyslurm.db.Jobs.load(pyslurm.db.JobFilter(ids=[held])))
    if by_id:
        break
    time.sleep(0.2)
window = pyslurm.db.JobFilter(start_time=now - 60, end_time=now + 60, users=[os.getuid()])
answer = [held in pyslurm.db.Jobs.load(window), by_id == [held], hasattr(window, "states")]
pyslurm.Job(held).cancel()
""",
    )
    assert (by_time, by_id, states) == (False, True, False)


def test_what_sbatch_tells_a_job_and_pyslurm_does_not_can_be_put_into_its_environment(person):
    job, more = ask(
        person,
        SUBMIT
        + """
os.umask(0o027)
added = {"SLURM_SUBMIT_DIR": here, "SLURM_SUBMIT_HOST": "login", "SLURM_UMASK": "0027"}
answer = [submit(name="plain"), submit(name="told", environment={**os.environ, **added})]
for job in answer:
    finish(job)
""",
    )
    plain, told = ((person.home / f"slurm-{id}.out").read_text().splitlines() for id in (job, more))
    assert "SLURM_JOB_NAME=plain" in plain
    assert not [line for line in plain if line.startswith("SLURM_SUBMIT")]
    assert "0022" in plain  # slurmd's own, not the submitter's
    assert {f"SLURM_SUBMIT_DIR={person.home}", "SLURM_SUBMIT_HOST=login", "0027"} <= set(told)


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("--time=01:00:00", {"time_limit": "01:00:00"}),
        ("--gpus-per-task=1", {}),  # silently nothing, as every option that it does not know
        ("--partition=main", "AttributeError"),
        ("--gpus-per-node=1", "AttributeError"),
        ("--output=lr=1.out", "ValueError"),
        ('--comment="two words"', "ValueError"),
        ("--nodes=1 --ntasks=1", "ValueError"),
        ("--job-name=a#b", {"name": "a"}),
    ],
)
def test_its_own_reading_of_sbatch_lines_is_not_sbatchs(person, line, outcome):
    script = person.home / "lines.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH {line}\n")
    answer = ask(
        person,
        """
wanted = pyslurm.JobSubmitDescription(script=here + "/lines.sh")
try:
    wanted.load_sbatch_options()
    answer = {n: getattr(wanted, n) for n in dir(wanted) if n[0] != "_" and n != "script"}
    answer = {n: value for n, value in answer.items() if value is not None and not callable(value)}
except Exception as error:
    answer = type(error).__name__
""",
    )
    assert answer == outcome


def test_a_refusal_is_an_error_with_slurms_number_and_a_dead_controller_costs_nine_seconds(person, cluster):
    catch = """
def number(call):
    started = time.time()
    try:
        call()
    except pyslurm.RPCError as error:
        return [error.errno, str(error), time.time() - started]
"""
    errno, text, _ = ask(person, f'{SUBMIT}{catch}answer = number(lambda: submit(partitions="nowhere"))')
    assert (errno, text) == (2000, "Invalid partition name specified")
    cluster.stop_controller()
    try:
        errno, text, seconds = ask(person, f"{catch}answer = number(lambda: pyslurm.Jobs.load())")
    finally:
        cluster.start_controller()
    assert (errno, text) == (1800, "Unable to contact slurm controller (connect failure)")
    assert 5 < seconds < 20


def test_without_a_configuration_the_import_ends_the_interpreter_unless_told_not_to_start(person):
    probe = [person.install / "venv/bin/python", "-c", "import pyslurm; print('alive')"]
    without = person.run("env", "--unset=SLURM_CONF", *probe)
    assert (without.returncode, without.stdout) == (1, "")
    assert "Could not establish a configuration source" in without.stderr
    quiet = person.run("env", "--unset=SLURM_CONF", *probe, PYSLURM_DISABLE_AUTO_INIT="1")
    assert (quiet.returncode, quiet.stdout) == (0, "alive\n")
