"""`python -m runner`."""

import gc
import sys


def _start() -> None:
    # What is imported stays: to look through it for garbage again and again is a tenth of the start.
    gc.set_threshold(50_000)
    try:
        from runner.cli import main
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "runner":
            raise
        # A Python that runner isn't installed in: say what to do, not where the import failed.
        sys.stderr.write(
            f"runner: this Python has no {missing.name}: use scripts/run in place of `python -m runner`, "
            "or install it: pip install -c constraints.txt -e .\n"
        )
        sys.exit(2)
    except KeyboardInterrupt:  # before anything began
        sys.exit(130)
    main()


if __name__ == "__main__":
    _start()
