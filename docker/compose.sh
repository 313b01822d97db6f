#!/usr/bin/env bash
# `docker compose` for the stack of this project, whatever the shell has set for others: `docker/compose.sh down`.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

need_engine
exec docker compose --progress quiet "$@"
