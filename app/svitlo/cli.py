"""The `svitlo` command: parse, call, print. No logic.

Exit codes: 0 done, 2 the user's mistake, 1 anything else, 128 + n stopped by signal n.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from svitlo import __version__
from svitlo.errors import ConfigError, SvitloError
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.interruption import Interruption

HELD = ["sleep", "infinity"]
"""What a container that has nothing to do becomes: 0.8 MiB, no CPU."""


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command."""
    command = click.option(
        "--volumes",
        "volumes_dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("volumes"),
        envvar="SVITLO_VOLUMES",
        show_default=True,
        help="Folder that holds raw/ data/ checkpoints/ logs/ export/ cache/.",
    )(command)
    return click.option(
        "--config",
        "config_dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("config"),
        envvar="SVITLO_CONFIG",
        show_default=True,
        help="Folder that holds data.yaml and the two phases' files.",
    )(command)


_hold = click.option("--hold", is_flag=True, help="When done or stuck, stay and wait instead of ending (containers).")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="svitlo %(version)s")
def cli() -> None:
    """Train a small language model from scratch on a computer whose power may fail at any moment."""


@cli.command()
@_common
@click.option("--owner", metavar="UID:GID", help="Give the folders to this user (when run as root).")
def setup(config_dir: Path, volumes_dir: Path, owner: str | None) -> None:
    """Create the volume folders and mark them as set up. Changes nothing in folders that are."""
    made = Volumes(volumes_dir).set_up(_parse_owner(owner))
    click.echo(f"volumes in {volumes_dir}: " + (f"set up {', '.join(made)}" if made else "all set up already"))


@cli.command()
@_common
@_hold
def prepare(config_dir: Path, volumes_dir: Path, hold: bool) -> None:
    """Turn the configured sources into tokenised shards."""
    from svitlo.data.prepare import prepare as prepare_data

    _run_held(hold, lambda: prepare_data(config_dir, Volumes(volumes_dir)))


@cli.command()
@_common
@_hold
@click.option("--phase", type=click.Choice(["1", "2"]), help="Run only this phase.")
@click.option("--resume", type=click.Path(path_type=Path, dir_okay=False), help="Go on from this checkpoint file.")
def train(config_dir: Path, volumes_dir: Path, hold: bool, phase: str | None, resume: Path | None) -> None:
    """Wait for data, train phase 1, then phase 2, then export. Goes on where it was."""
    from svitlo.appliance import Request
    from svitlo.appliance import train as train_phases
    from svitlo.interruption import Interruption
    from svitlo.reporting.status import write_status

    interruption = Interruption()
    request = Request(config_dir, Volumes(volumes_dir), (int(phase),) if phase else (1, 2), resume)
    status_path = request.volumes.status
    _run_held(
        hold,
        lambda: train_phases(request, interruption),
        lambda error: write_status(status_path, state="error", message=str(error)),
        interruption,
    )


@cli.command()
@_common
def export(config_dir: Path, volumes_dir: Path) -> None:
    """Write the best model so far in the field's formats to export/model/."""
    from svitlo.model.export import export_model

    export_model(Volumes(volumes_dir))


@cli.command()
@_common
@click.argument("text")
@click.option("--max-tokens", default=80, show_default=True, type=click.IntRange(1, 1_000), help="Tokens to write.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0, 5), help="0: the likeliest.")
def generate(config_dir: Path, volumes_dir: Path, text: str, max_tokens: int, temperature: float) -> None:
    """Answer TEXT with the newest model, also while training."""
    from svitlo.model.generate import answer

    click.echo(answer(Volumes(volumes_dir), text, max_new_tokens=max_tokens, temperature=temperature))


@cli.command()
@_common
@click.option("--json", "json_wanted", is_flag=True, help="As JSON.")
def status(config_dir: Path, volumes_dir: Path, json_wanted: bool) -> None:
    """Show what is going on, on one screen."""
    from svitlo.reporting.screen import as_json, print_screen

    if json_wanted:
        click.echo(json.dumps(as_json(Volumes(volumes_dir)), indent=2, ensure_ascii=False))
    else:
        print_screen(Volumes(volumes_dir))


@cli.command()
@_common
def verify(config_dir: Path, volumes_dir: Path) -> None:
    """Check every shard, checkpoint and exported file."""
    from svitlo.operations.verify import verify_volumes

    if not verify_volumes(Volumes(volumes_dir)):
        sys.exit(1)


@cli.command()
@_common
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
def backup(config_dir: Path, volumes_dir: Path, destination: Path) -> None:
    """Copy everything, with checksums, into a new folder in DESTINATION. Training may go on meanwhile."""
    from svitlo.operations.backup import backup as back_up

    click.echo(back_up(Volumes(volumes_dir), destination, config_dir))


@cli.command()
@_common
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Also over a newer or another run, which is moved aside.")
def restore(config_dir: Path, volumes_dir: Path, source: Path, force: bool) -> None:
    """Verify the backup SOURCE and put it into the volumes."""
    from svitlo.operations.backup import restore as restore_backup

    click.echo(restore_backup(Volumes(volumes_dir), source, force=force))


@cli.command("new-run")
@_common
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_run(config_dir: Path, volumes_dir: Path, yes: bool) -> None:
    """Move checkpoints, logs and export aside, so that training begins anew. Deletes nothing."""
    from svitlo.operations.backup import new_run as move_aside

    if not yes:
        click.confirm("Move the present run aside and begin another one?", abort=True)
    click.echo(move_aside(Volumes(volumes_dir)))


def _parse_owner(owner: str | None) -> tuple[int, int] | None:
    if owner is None:
        return None
    try:
        uid, gid = (int(part) for part in owner.split(":"))
    except ValueError:
        raise ConfigError(f"--owner {owner!r}: give user and group as two numbers, for example 1000:1000") from None
    return uid, gid


def _run_held(
    hold: bool,
    work: Callable[[], Any],
    on_error: Callable[[SvitloError], None] = lambda _: None,
    interruption: Interruption | None = None,
) -> None:
    """Run `work`; with `--hold`, become a process that waits when it is done or cannot go on by itself."""
    from svitlo.reporting.status import set_health

    try:
        message = str(work() or "done")
    except SvitloError as error:
        set_health(False, str(error))
        on_error(error)
        if not (hold and error.is_permanent):
            raise
        click.echo(f"error: {error}\nNothing is lost. Waiting until somebody mends this and restarts me.", err=True)
        _hold_still(interruption)
    click.echo(message)
    set_health(True, message)
    if hold:
        _hold_still(interruption)


def _hold_still(interruption: Interruption | None) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):  # from here on a signal ends the process
        signal.signal(number, signal.SIG_DFL)
    if interruption is not None:
        interruption.check()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(HELD[0], HELD)


def main() -> None:
    """Entry point: errors meant for people become one message and an exit code."""
    from svitlo.interruption import Interrupted

    try:
        cli.main(standalone_mode=False)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except SvitloError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        click.echo("stopped; nothing was changed", err=True)
        sys.exit(130)
