"""``make demo``: a small experiment brought to its desired state before one's eyes, on this machine, without Slurm or a GPU.

Makes an experiment of four fine-tunes and five evaluations in a fresh directory (or the one named), whose scripts call stand-ins
for torchtune and inspect-ai, and runs the installed ``reconcile`` on it. Ends with 0 only if everything converged.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECONCILE = Path(sys.executable).parent / "reconcile"
TIME_LIMIT = 120  # seconds, for one command: far more than it needs


def main() -> int:
    lab = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="reconcile-")) / "demo-experiment"
    maker = [sys.executable, str(HERE / "new_experiment.py"), str(lab)]
    experiment = Path(subprocess.run(maker, check=True, capture_output=True, text=True).stdout.strip())
    os.environ["RECONCILE_LOCAL_DIR"] = str(lab.resolve() / "local-backend")
    started = time.monotonic()
    try:
        converged = show(experiment)
    except (KeyboardInterrupt, subprocess.TimeoutExpired) as stopped:
        print(f"\nStopping ({type(stopped).__name__}): cancelling the jobs that are left.", flush=True)
        cancel_live_jobs(experiment)
        return 130 if isinstance(stopped, KeyboardInterrupt) else 1
    log = lab / "jobs.log"
    ran = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    verdict = "Converged" if converged else "Did NOT converge"
    print(f"\n{verdict} in {time.monotonic() - started:.0f} s. Jobs that ran: {len(ran)}, for {len(set(ran))} different steps.")
    print(
        f"To go on with it yourself: export RECONCILE_LOCAL_DIR={os.environ['RECONCILE_LOCAL_DIR']} PATH={RECONCILE.parent}:$PATH"
    )
    print(f"The experiment stays in {experiment} (rm -r {lab} when you are done).")
    return 0 if converged else 1


def show(experiment: Path) -> bool:
    """The whole story; True where the world is at the end as the document wants it."""
    say(f"Five runs, four to be fine-tuned, each to be evaluated: {experiment / 'experiment_summary.md'}")
    say("1. What is missing?")
    reconcile("diff", experiment)
    say("2. Make it so: two jobs at a time, evaluations as soon as their checkpoint is verified.")
    reconcile("apply", experiment, "--backend", "local", "--wait", "--max-in-flight", "2")
    say("3. Where does each step stand?")
    reconcile("status", experiment)
    say("4. What the document says of it now:")
    print(status_tables((experiment / "experiment_summary.md").read_text(encoding="utf-8")))
    say("5. What is missing now?")
    return reconcile("diff", experiment) == 0


def reconcile(command: str, experiment: Path, *options: str) -> int:
    """Run one command in the open, and return its exit code."""
    arguments = [command, str(experiment), *options]
    print(f"$ reconcile {' '.join(arguments)}", flush=True)
    return subprocess.run([str(RECONCILE), *arguments], timeout=TIME_LIMIT, check=False).returncode


def status_tables(document: str) -> str:
    """The sections that tell the status: each from its heading to the next."""
    sections = re.split(r"(?m)^(?=#{1,6} )", document)
    return "\n".join(section.strip() + "\n" for section in sections if re.match(r"#+ .*Status", section))


def cancel_live_jobs(experiment: Path) -> None:
    """Jobs outlive the command that submitted them, so each that is queued or running is cancelled by name."""
    answer = subprocess.run(
        [str(RECONCILE), "status", str(experiment), "--output", "json"], capture_output=True, text=True, check=False
    )
    steps = json.loads(answer.stdout or "{}").get("steps", [])
    live = [step["step"] for step in steps if step["condition"] in ("Queued", "Running")]
    if live:
        subprocess.run([str(RECONCILE), "cancel", str(experiment), *live], check=False)


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
