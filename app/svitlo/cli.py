"""The `svitlo` command: parse, call, print. No logic.

Exit codes: 0 done, 2 the user's mistake, 3 nothing there to verify or to back up, 1 anything else (`verify`: a file is
not good), 128 + n stopped by signal n.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from pathlib import Path

import click

from svitlo import __version__
from svitlo.errors import ConfigError, SvitloError
from svitlo.phases import PHASES, phase_numbered
from svitlo.storage.probe import ACCEPTABLE
from svitlo.volumes import Volumes


def _with_their_owner(context: click.Context, _: click.Parameter, volumes_dir: Path) -> Path:
    """However a command ends, and whoever ran it: files in the volumes belong to the volumes' owner."""

    def give() -> None:
        from svitlo.operations.shared import give_volumes_to_their_owners

        give_volumes_to_their_owners(Volumes(volumes_dir))

    context.call_on_close(give)
    return volumes_dir


_volumes = click.option(
    "--volumes",
    "volumes_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("volumes"),
    envvar="SVITLO_VOLUMES",
    callback=_with_their_owner,
    show_default=True,
    help="Folder that holds raw/ data/ checkpoints/ logs/ export/ cache/.",
)
_config = click.option(
    "--config",
    "config_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("config"),
    envvar="SVITLO_CONFIG",
    show_default=True,
    help="Folder that holds data.yaml and the two phases' files.",
)
_hold = click.option("--hold", is_flag=True, help="When done or stuck, wait instead of exiting (for containers).")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="svitlo %(version)s")
def cli() -> None:
    """Train a small language model from scratch on a computer whose power may fail at any moment."""


@cli.command()
@_volumes
@click.option("--owner", metavar="UID:GID", help="Give the folders to this user (when run as root).")
@click.option(
    "--accept",
    "accepted",
    type=click.Choice(ACCEPTABLE),
    multiple=True,
    help="Use a disk that cannot promise this (see docs/durability.md).",
)
def setup(volumes_dir: Path, owner: str | None, accepted: tuple[str, ...]) -> None:
    """Create the volume folders and mark them as set up. Leaves folders alone that are set up already."""
    made = Volumes(volumes_dir).set_up(_parse_owner(owner), accepted, say=lambda note: click.echo(f"note: {note}"))
    click.echo(f"volumes in {volumes_dir}: " + (f"set up {', '.join(made)}" if made else "all set up already"))


@cli.command()
@_config
@_volumes
@_hold
def prepare(config_dir: Path, volumes_dir: Path, hold: bool) -> None:
    """Turn the configured sources into tokenised shards."""
    from svitlo.appliance.holding import run_service
    from svitlo.data.prepare import prepare as prepare_data
    from svitlo.interruption import Interruption

    volumes, interruption = Volumes(volumes_dir), Interruption()
    work = functools.partial(prepare_data, config_dir, volumes, interruption)
    run_service(work, volumes.prepare_status, interruption, hold=hold)


@cli.command()
@_config
@_volumes
@_hold
@click.option("--phase", type=click.Choice([str(phase.number) for phase in PHASES]), help="Run only this phase.")
@click.option("--resume", type=click.Path(path_type=Path, dir_okay=False), help="Go on from this checkpoint file.")
def train(config_dir: Path, volumes_dir: Path, hold: bool, phase: str | None, resume: Path | None) -> None:
    """Wait for data, train phase 1, then phase 2, then export. Continues where it left off."""
    from svitlo.appliance.holding import run_service
    from svitlo.appliance.trainer import Request
    from svitlo.appliance.trainer import train as train_phases
    from svitlo.interruption import Interruption

    volumes, interruption = Volumes(volumes_dir), Interruption()
    phases = (phase_numbered(int(phase)),) if phase else PHASES
    work = functools.partial(train_phases, Request(config_dir, volumes, phases, resume), interruption)
    run_service(work, volumes.status, interruption, hold=hold)


@cli.command()
@_volumes
def export(volumes_dir: Path) -> None:
    """Export the best model so far to export/model/, for transformers and other tools."""
    from svitlo.model.export import export_model

    export_model(Volumes(volumes_dir))


@cli.command()
@_volumes
@click.argument("text")
@click.option("--max-tokens", default=80, show_default=True, type=click.IntRange(1, 1_000), help="Tokens to write.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0, 5), help="0: the most likely.")
def generate(volumes_dir: Path, text: str, max_tokens: int, temperature: float) -> None:
    """Answer TEXT with the newest model. Works while training runs."""
    from svitlo.model.generate import answer

    click.echo(answer(Volumes(volumes_dir), text, max_new_tokens=max_tokens, temperature=temperature))


@cli.command()
@_volumes
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON (see docs/status.md).")
def status(volumes_dir: Path, json_wanted: bool) -> None:
    """Show the state of the run on one screen."""
    from svitlo.reporting.overview import overview
    from svitlo.reporting.screen import print_screen

    known = overview(Volumes(volumes_dir))
    if json_wanted:
        click.echo(json.dumps(known, indent=2, ensure_ascii=False))
    else:
        print_screen(known)


@cli.command()
@_volumes
def verify(volumes_dir: Path) -> None:
    """Check every shard, checkpoint and exported file. Exits with 1 if one is not good, 3 if there is none."""
    from svitlo.operations.verify import verify_volumes

    if not verify_volumes(Volumes(volumes_dir)):
        sys.exit(1)


@cli.command()
@_config
@_volumes
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
def backup(config_dir: Path, volumes_dir: Path, destination: Path) -> None:
    """Copy everything, with checksums, into a new folder in DESTINATION. Works while training runs."""
    from svitlo.operations.backup import backup as back_up

    click.echo(back_up(Volumes(volumes_dir), destination, config_dir))


@cli.command()
@_volumes
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Also over a newer or different run, which is moved aside.")
def restore(volumes_dir: Path, source: Path, force: bool) -> None:
    """Verify the backup SOURCE and restore it into the volumes."""
    from svitlo.operations.restore import restore as restore_backup

    click.echo(restore_backup(Volumes(volumes_dir), source, force=force))


@cli.command("new-run")
@_volumes
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def new_run(volumes_dir: Path, yes: bool) -> None:
    """Move checkpoints, logs and export aside, so that training starts from scratch. Deletes nothing."""
    from svitlo.operations.new_run import new_run as move_aside

    if not yes:
        click.confirm("Move the current run aside and start a new one?", abort=True)
    click.echo(move_aside(Volumes(volumes_dir)))


def _parse_owner(owner: str | None) -> tuple[int, int] | None:
    if owner is None:
        return None
    try:
        uid, gid = (int(part) for part in owner.split(":"))
    except ValueError:
        raise ConfigError(f"--owner {owner!r}: give user and group as two numbers, for example 1000:1000") from None
    return uid, gid


def main() -> None:
    """Entry point. Turns errors meant for people into one message and an exit code."""
    from svitlo.interruption import Interrupted

    for stream in (sys.stdout, sys.stderr):  # a terminal or a log that is not UTF-8 gets what it can take
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
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
