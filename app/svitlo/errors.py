"""The errors that are meant for people: caught in `cli.py` and printed as one message, without a traceback.

A message names the file, the key or path, the value that was found, and the remedy.
"""


class SvitloError(Exception):
    """Something a person has to know about. `exit_code` is the process's; `is_permanent` says that trying again
    cannot help, so that a container holds still and explains instead of being restarted for ever."""

    exit_code = 1
    is_permanent = True


class ConfigError(SvitloError):
    """A mistake in a configuration file or on the command line."""

    exit_code = 2


class DataError(SvitloError):
    """Source text, shards or a manifest that cannot be used as they are."""

    exit_code = 2


class CheckpointError(SvitloError):
    """No checkpoint can be used, or the one that can belongs to another run."""

    exit_code = 2


class VolumeError(SvitloError):
    """A volume is missing, read-only, full or somebody else's.

    Not permanent: a disk may be mounted late, and only a new start of the container sees it.
    """

    is_permanent = False


class AlreadyRunning(SvitloError):  # noqa: N818 — says what is the matter
    """Another process is at the same work on these volumes. Its status is not ours to write."""

    exit_code = 2
