#!/usr/bin/env bash
# Runs a command while data-prep and trainer are stopped, and starts those again that ran: `docker/while-stopped.sh COMMAND…`.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

# Where nothing runs, compose prints an empty line.
mapfile -t running < <(docker compose ps --status running --status restarting --services | sed '/^$/d')
if [ "${#running[@]}" -gt 0 ]; then
    say "stopping ${running[*]}"
    docker compose --progress quiet stop "${running[@]}"
    trap 'say "starting ${running[*]}"; docker compose --progress quiet start "${running[@]}"' EXIT
fi
"$@"
