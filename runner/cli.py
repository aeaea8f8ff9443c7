"""The command line. Nothing heavy is imported before a command really runs: `--help` is to answer at once."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from runner import __version__
from runner.cli_load import load_options
from runner.errors import RunnerError, UsageError, of_system
from runner.escape import for_terminal
from runner.terminal import Outlet, flush_standard_streams, open_standard_streams, stream_may_be_gone

COMMANDS: Final = ("run", "check", "load", "compare", "tail", "report", "serve")
PRESETS: Final = ("default", "storm", "flaky")
_SECRETS: Final = (
    (re.compile(r"://\S*@"), "://[redacted]@"),
    (re.compile(r":[^\s/]*@"), ":[redacted]@"),  # where the URL's beginning is wrong, which is why it was refused
    (re.compile(r"(://[^\s?#]*[?#])[^\s'\"]+"), r"\1[redacted]"),
    (re.compile(r"\bsk-[\w-]{8,}"), "[redacted]"),  # given in the place of the name of its variable
)
F = TypeVar("F", bound=Callable[..., Any])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code (see README)."""
    open_standard_streams()
    arguments = normalise(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(args=arguments, prog_name="python -m runner", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        with stream_may_be_gone():
            error.show()
        code = error.exit_code
    except Exception as error:
        ours = error if isinstance(error, RunnerError) else of_system(error)
        if ours is None or (ours is not error and sys.flags.dev_mode):  # `python -X dev` shows where
            raise
        if ours is not error:
            _keep_quiet()
        Outlet(sys.stderr).write(f"runner: {for_terminal(_without_secrets(str(ours)))}\n")
        code = ours.exit_code
    flush_standard_streams()
    sys.exit(code if isinstance(code, int) else 0)


def _without_secrets(text: str) -> str:
    """Leaves keys, and user, password and query of URLs, out of a message, which may stand in a scheduler's log."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def _keep_quiet() -> None:
    """Where not even an event loop could be had, what never began or was left complains at the end of Python."""
    warnings.simplefilter("ignore")
    logging.disable()


def normalise(argv: Sequence[str]) -> list[str]:
    """`jobs.jsonl …` → `run jobs.jsonl …`, and `--simulate` without a name → `--simulate=default`.

    `run` is the default command: a first argument that is neither a sub-command nor the group's own option begins it.
    """
    arguments = ["--simulate=default" if word == "--simulate" else word for word in argv]
    for i, word in enumerate(arguments[:-1]):
        if word == "--simulate=default" and arguments[i + 1] in PRESETS:
            arguments[i : i + 2] = [f"--simulate={arguments[i + 1]}"]
            break
    if arguments and arguments[0] not in (*COMMANDS, "--help", "-h", "--version"):
        arguments.insert(0, "run")
    return arguments


def _show(text: Callable[[click.Context], str]) -> Callable[[click.Context, click.Parameter, bool], None]:
    """An option's callback that prints a text and ends; click's own fails where standard output is full."""

    def show(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            Outlet(sys.stdout, waits=True).write(f"{text(context)}\n")
            context.exit()

    return show


class _Command(click.Command):
    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show(click.Context.get_help)
        return option


class _Group(_Command, click.Group):
    command_class = _Command


_VERSION: Final = _show(lambda _: f"runner, version {__version__}")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_VERSION, help="Show the version and exit."
)
def cli() -> None:
    """Run JSONL prompt files as concurrent AsyncOpenAI streams, under RPM/TPM limits, one final record a job.

    \b
    python -m runner jobs.jsonl               run, or resume, into results/jobs/
    python -m runner jobs.jsonl --simulate    the same without key and network
    """  # noqa: D301 - click's \b keeps the lines apart


def setting(*names: str, **kwargs: Any) -> Callable[[F], F]:
    """An option that overrides a setting; unset it stays out of the flags."""
    return click.option(*names, default=None, **kwargs)


def settings_options(function: F) -> F:
    """The options that `run` and `check` share. Values are checked by `settings`, in one place."""
    for option in reversed(
        (
            setting("--model", metavar="NAME", help="Model for lines that name none."),
            setting("--rpm", metavar="N", help="Requests a minute."),
            setting("--tpm", metavar="N", help="Tokens a minute, input and reserved output."),
            setting("--reserve-output-tokens", metavar="N", help="Reserved for lines that name no maximum. [learned]"),
            click.option("--config", metavar="NAME|FILE", help="configs/NAME.toml, or a TOML file."),
        )
    ):
        function = option(function)
    return function


@cli.command(context_settings={"show_default": False})
@click.argument("jobs", nargs=-1, required=True)
@click.option("--out", metavar="DIR", help="Output folder. [results/<stem of JOBS>]")
@settings_options
@setting("--concurrency", metavar="N|auto", help="Streams at once. [auto]")
@setting("--transport", type=click.Choice(["aiohttp", "native"]), help="What sends the requests. [native]")
@click.option(
    "--simulate",
    metavar="[PRESET]",
    help="Use the built-in simulator: no key, no network. PRESET: default, storm or flaky.",
)
@setting("--base-url", metavar="URL", help="An OpenAI-compatible server. [OPENAI_BASE_URL, else OpenAI]")
@setting("--api-key-env", metavar="NAME", help="Environment variable that holds the key. [OPENAI_API_KEY]")
@setting("--max-attempts", metavar="N", help="Tries of one job. [5]")
@setting("--first-token-timeout", metavar="TIME", help="From sending to the first content, e.g. 90s or 5m. [5m]")
@setting("--idle-timeout", metavar="TIME", help="Between two deltas. [60s]")
@setting("--total-timeout", metavar="TIME", help="One attempt in all. [30m]")
@setting("--stream-options", metavar="openai|usage|none", help="What to ask of a stream. [openai]")
@setting("--fail-on", metavar="FINISH,…", help="Finish reasons that count as failure, e.g. length.")
@setting("--flex-fallback", is_flag=True, flag_value=True, help="Where flex has no room, use the default tier.")
@setting("--primer-first", is_flag=True, flag_value=True, help="One job of each prompt_cache_key goes ahead.")
@setting("--deltas/--no-deltas", help="Write deltas.jsonl. [yes]")
@setting("--echo", is_flag=True, flag_value=True, help="Print tokens to stdout as they arrive.")
@setting("--limit", metavar="N", help="Run at most N jobs.")
@click.option("--retry-failed", is_flag=True, help="Run again the jobs whose record is a failure.")
@click.option("--accept-changes", is_flag=True, help="Run again the jobs whose line changed under their id.")
@click.option("--fresh", is_flag=True, help="Start anew; what is in DIR is moved to DIR/old-….")
@setting("--strict", is_flag=True, flag_value=True, help="Send nothing if any line can't be a job.")
@setting("--deadline", metavar="TIME", help="Stop the run after this long, e.g. 8h.")
@setting("--max-cost", metavar="N", help="Stop the run when this much is spent (needs prices in --config).")
@setting("--max-failures", metavar="N", help="Stop the run at N failed jobs.")
@setting("--grace", metavar="TIME", help="How long jobs in flight may go on after a stop. [30s]")
@setting("--durability", metavar="batch|each|none", help="fsync records in groups, one by one, or not. [batch]")
@setting("--progress", metavar="auto|rich|plain|json|none", help="The live view, on stderr. [auto]")
@setting("--log-level", metavar="LEVEL", help="Of DIR/run.log. [INFO]")
@setting("--seed", metavar="N", help="Seed of the jitter in backoff.")
def run(
    jobs: tuple[str, ...],
    out: str | None,
    config: str | None,
    simulate: str | None,
    retry_failed: bool,
    accept_changes: bool,
    fresh: bool,
    **flags: Any,
) -> int:
    """Run JOBS (files of JSON lines, plain, .gz or .zst; - is stdin). The same command again resumes."""
    from runner.api import execute
    from runner.plan import Plan
    from runner.settings import load

    settings = load(flags=_given(flags), config=config)
    plan = Plan.of(
        jobs,
        out=out,
        settings=settings,
        simulate=simulate,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
        fresh=fresh,
    )
    return execute(plan)


@cli.command()
@click.argument("jobs", nargs=-1, required=True)
@settings_options
def check(jobs: tuple[str, ...], config: str | None, **flags: Any) -> int:
    """Validate every line of JOBS; estimate tokens, cost and duration. Sends nothing.

    Exits with 1 if a line can't be a job, or never fits the limits.
    """
    import anyio

    from runner import check as checking
    from runner.settings import load

    settings = load(flags=_given(flags), config=config)
    found = anyio.run(checking.check, jobs, settings)
    checking.report(found, settings, Outlet(sys.stdout, waits=True))
    return 0 if found.ok else 1


@cli.command(context_settings={"show_default": False})
@load_options
def load(config: str | None, **given: Any) -> int:
    """Load-test a server: levels of concurrency or of requests a second, with figures that can be trusted.

    Prompts come from JOBS, or are made (--synthetic), or are ShareGPT's. Exits with 1 if a level had no answer at all.
    """
    from runner.load.command import run_command

    return run_command(config, given, [_without_secrets(word) for word in sys.argv[1:]])  # for load.json


@cli.command()
@click.argument("a", metavar="A", type=click.Path(path_type=Path))
@click.argument("b", metavar="B", type=click.Path(path_type=Path))
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the comparison as a page, too.")
def compare(a: Path, b: Path, html: Path | None) -> int:
    """Two load tests side by side: what changed, and whether it is beyond noise. A and B are folders or load.json."""
    from runner.load.command import run_compare

    return run_compare(a, b, html)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("custom_id", required=False)
@click.option("--follow/--no-follow", default=True, help="Wait for more while the run goes on. [follow]")
def tail(folder: Path, custom_id: str | None, follow: bool) -> int:
    """Follow the run in DIR, or one job's text, as it arrives."""
    import anyio

    from runner.tail import tail as follow_run

    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    code = anyio.run(partial(follow_run, folder, custom_id, sys.stdout, follow=follow))
    if code != 0:
        Outlet(sys.stderr).write(f"runner: {for_terminal(f'{folder}: there is no record of {custom_id!r}')}\n")
    return code


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> int:
    """Rebuild DIR/summary.json from its records, and print it."""
    from runner.api import rebuild_summary

    rebuild_summary(folder)
    return 0


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> int:
    """The built-in simulator as a server, with limits, pace and failures of your choice."""
    from runner.simulator.__main__ import main as simulator

    return simulator(options)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Only what the user said."""
    return {key: value for key, value in flags.items() if value is not None}
