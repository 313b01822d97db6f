"""What a service does when it is done or cannot go on by itself: it says why, and waits without using resources.

The engine restarts a container that exits, whatever its exit code. So a service with nothing to do must not exit.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from svitlo.errors import AlreadyRunning, SvitloError
from svitlo.interruption import Interruption
from svitlo.reporting.events import print_line
from svitlo.reporting.status import set_health, write_status
from svitlo.units import duration
from svitlo.volumes import MARKER

HELD = "sleep"
"""What a container with nothing to do becomes: 0.8 MiB, no CPU."""


def run_service(work: Callable[[], str], status: Path, interruption: Interruption, *, hold: bool) -> None:
    """Do `work` and report how it ended: in the log, in the service's `status` and in its health.

    With `hold`, becomes a waiting process when the work is done, and when trying again cannot help or only later. When
    that process ends, the engine starts the service again. Other errors are raised as `SvitloError`.
    """
    try:
        message = work()
    except SvitloError as error:
        tries_again = hold and not error.is_permanent
        is_for_later = tries_again and error.retry_seconds > 0
        reason = str(error)
        if is_for_later:
            reason += f". The next try is in {duration(error.retry_seconds)}"
        elif tries_again:
            reason += ". This is tried again by itself"
        set_health(False, reason)
        # Without its marker the folder may be where a disk is to be mounted.
        if not isinstance(error, AlreadyRunning) and (status.parent / MARKER).is_file():
            write_status(status, state=error.state if tries_again else "error", message=reason)
        if is_for_later:
            print(f"error: {reason}. Nothing is lost; waiting.", file=sys.stderr)
            _hold_still(interruption, error.retry_seconds)
        if not (hold and error.is_permanent):
            raise
        print(f"error: {error}\nNothing is lost. Fix this, then restart the container. It waits here.", file=sys.stderr)
        _hold_still(interruption)
    print_line(message)
    set_health(True, message)
    if hold:
        _hold_still(interruption)


def _hold_still(interruption: Interruption, seconds: float | None = None) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):  # from here on a signal ends the process
        signal.signal(number, signal.SIG_DFL)
    interruption.check()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(HELD, [HELD, "infinity" if seconds is None else str(seconds)])
