#!/usr/bin/env bash
# Moves the current run aside, so that training starts from scratch. Deletes nothing. Asks first, unless YES=1.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh
need_engine

if [ -z "${YES:-}" ]; then
    [ -t 0 ] || die "cannot ask for confirmation without a terminal; to go ahead anyway: make new-run YES=1" 2
    read -r -p "Move the current run aside and start a new one? [y/N] " answer
    [[ "$answer" == [yY]* ]] || die "nothing was changed" 0
fi
docker/while-stopped.sh docker/tools.sh new-run --yes
