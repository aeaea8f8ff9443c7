"""The command line of `scripts/soak`: what the test suite does small, done large.

Each prints its seed where it has one, its figures, and a last line that begins with OK or VIOLATED (exit 1).
"""

from __future__ import annotations

import argparse
import os
import random
import sys

import pytest


def main() -> int:
    options = parser().parse_args()
    return options.run(options)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    soaks = result.add_subparsers(required=True, metavar="kill | machine | million | endless | line")
    kill_parser = soaks.add_parser("kill", help="kill -9 at random moments; the simulator's log is the oracle")
    kill_parser.add_argument("--times", type=int, default=1_000, help="kills (default %(default)s)")
    kill_parser.add_argument("--jobs", type=int, default=2_000, help="in each folder (default %(default)s)")
    kill_parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    kill_parser.set_defaults(run=kill)
    machine_parser = soaks.add_parser("machine", help="a hypothesis state machine on a disk in memory")
    machine_parser.add_argument("--examples", type=int, default=5_000, help="lives (default %(default)s)")
    machine_parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    machine_parser.set_defaults(run=machine)
    million_parser = soaks.add_parser("million", help="memory over very many jobs")
    million_parser.add_argument("--jobs", type=int, default=1_000_000)
    million_parser.set_defaults(run=million)
    endless_parser = soaks.add_parser("endless", help="memory over very many deltas that say nothing, in 32 streams")
    endless_parser.add_argument("--deltas", type=int, default=1_000_000, help="in each stream (default %(default)s)")
    endless_parser.set_defaults(run=endless)
    line_parser = soaks.add_parser("line", help="memory under a line of gigabytes on standard input")
    line_parser.add_argument("--mebibytes", type=int, default=4_096, help="of the line (default %(default)s)")
    line_parser.set_defaults(run=line)
    return result


def kill(options: argparse.Namespace) -> int:
    import _soak_kill

    return _soak_kill.soak(options.times, options.jobs, options.seed)


def machine(options: argparse.Namespace) -> int:
    os.environ["SOAK_EXAMPLES"] = str(options.examples)
    code = pytest.main(["-s", "tests/test_soak_machine.py", f"--hypothesis-seed={options.seed}"])
    verdict = "OK" if code == 0 else "VIOLATED"
    print(f"{verdict}: {options.examples} examples, seed {options.seed}")
    return 0 if code == 0 else 1


def million(options: argparse.Namespace) -> int:
    import _soak_million

    return _soak_million.soak(options.jobs)


def endless(options: argparse.Namespace) -> int:
    import _soak_endless

    return _soak_endless.soak(options.deltas)


def line(options: argparse.Namespace) -> int:
    import _soak_line

    return _soak_line.soak(options.mebibytes)


if __name__ == "__main__":
    sys.exit(main())
