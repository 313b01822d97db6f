#!/usr/bin/env bash
# Puts a backup back: `docker/restore.sh FROM` (a folder made by `make backup`). It is verified first. FORCE=1 also puts it
# over a newer or another run, which is moved aside. Services that run are stopped for it and started again.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

from=${1:-}
[ -n "$from" ] || die "say which backup: make restore FROM=/media/disk/svitlo/…" 2
[ -d "$from" ] || die "there is no folder $from" 2
options=()
if [ -n "${FORCE:-}" ]; then options=(--force); fi

image=svitlo/trainer:$(setting SVITLO_VERSION local)
docker image inspect "$image" >/dev/null 2>&1 || docker/build.sh
# On a new machine there are no volumes yet; where there are, this changes nothing.
docker compose --progress quiet run --rm --no-deps -T setup >&2
docker/while-stopped.sh docker/tools.sh -v "$(realpath "$from"):/backup:ro" -- restore /backup "${options[@]}"
