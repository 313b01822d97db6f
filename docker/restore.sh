#!/usr/bin/env bash
# Restores a backup: `docker/restore.sh FROM` (a folder made by `make backup`). Verifies it first. FORCE=1 also restores over
# a newer or different run, which is moved aside. Running services are stopped meanwhile and started again.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

from=${1:-}
[ -n "$from" ] || die "no backup given. Use: make restore FROM=/media/disk/svitlo/…" 2
[ -d "$from" ] || die "there is no folder $from" 2
case "$(realpath -- "$from")" in
    *:*) die "$from has a colon in its path, and no container can have it mounted. Rename that folder" 2 ;;
esac
need_engine
options=()
if [ -n "${FORCE:-}" ]; then options=(--force); fi

version=$(setting SVITLO_VERSION local)
image=svitlo/trainer:$version
docker image inspect "$image" >/dev/null 2>&1 || docker/build.sh
# A new machine has no volumes yet. If there are volumes, this changes nothing.
docker compose --progress quiet run --rm --no-deps -T setup >&2
docker/while-stopped.sh docker/tools.sh -v "$(realpath "$from"):/backup:ro" -- restore /backup "${options[@]}"
