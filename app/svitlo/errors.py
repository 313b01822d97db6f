"""Errors meant for people. `cli.py` catches them and prints one message without a traceback.

A message names the file, the key or path, the value that was found, and the remedy.
"""


class SvitloError(Exception):
    """Something a person has to know about. `exit_code` is that of the process. `is_permanent` means that trying again
    cannot help: a container then waits and says why, instead of restarting forever. Where it can, a container waits
    `retry_seconds` before it tries again: 0 if the engine's own pauses are enough."""

    exit_code = 1
    is_permanent = True
    state = "error"
    """What a container is called that is started again until this is over. One of `reporting.status.STATES`."""
    retry_seconds = 0.0


class ConfigError(SvitloError):
    """A mistake in a configuration file or on the command line."""

    exit_code = 2


class DataError(SvitloError):
    """Source text, shards or a manifest that cannot be used."""

    exit_code = 2


class DamagedData(DataError):  # noqa: N818 — says what is wrong
    """A shard or a manifest with other bytes than were written. Not permanent: data-prep makes it again."""

    is_permanent = False

    def __init__(self, message: str, file: str = "") -> None:
        """`file`: the name of a shard's file."""
        super().__init__(message)
        self.file = file


class CheckpointError(SvitloError):
    """No checkpoint can be used, or the usable one belongs to another run."""

    exit_code = 2


class VolumeError(SvitloError):
    """A volume is missing, read-only, full or owned by another user.

    Not permanent: a disk may be mounted late, and only a restart of the container sees it.
    """

    is_permanent = False


class AlreadyRunning(SvitloError):  # noqa: N818 — says what is wrong
    """Another process does the same work on these volumes. Only that process may write the status."""

    exit_code = 2
