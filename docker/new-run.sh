#!/usr/bin/env bash
# Moves the present run aside, so that training begins anew; deletes nothing. Asks first (YES=1: does not ask).
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

if [ -z "${YES:-}" ]; then
    [ -t 0 ] || die "nobody is there to be asked; to go ahead without: make new-run YES=1" 2
    read -r -p "Move the present run aside and begin another one? [y/N] " answer
    [[ "$answer" == [yY]* ]] || die "nothing was changed" 0
fi
docker/while-stopped.sh docker/tools.sh new-run --yes
