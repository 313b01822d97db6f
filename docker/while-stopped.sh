#!/usr/bin/env bash
# Stops data-prep and trainer, runs a command, and starts again those that ran: `docker/while-stopped.sh COMMAND…`.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh
need_engine

# If nothing runs, compose prints an empty line.
mapfile -t running < <(docker compose ps --status running --status restarting --services | sed '/^$/d')
if [ "${#running[@]}" -gt 0 ]; then
    say "stopping ${running[*]}"
    docker compose --progress quiet stop "${running[@]}"
    trap 'say "starting ${running[*]}"; docker compose --progress quiet start "${running[@]}"' EXIT
fi
"$@"
