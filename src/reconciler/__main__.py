"""``reconcile``, from the interpreter's first line: an interrupt is no traceback even while modules are loaded."""

import os
import sys

from reconciler import interrupts


def main() -> None:
    """Run the command line and end the interpreter with the contract's exit code."""
    interrupts.install()
    try:
        from reconciler.cli import prepare_streams, run

        prepare_streams()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = interrupts.INTERRUPTED
    try:
        sys.stdout.flush()
    except OSError:
        os._exit(code)  # what cannot be written now cannot be at the end either, and would change the code
    sys.exit(code)


if __name__ == "__main__":
    main()
