#!/usr/bin/env bash
# svitlo.service runs this once at every boot. The engine restarts what ran before the power cut. This script repairs what
# the engine cannot: containers that vanished with a damaged file, were created but never started, or failed to start. What
# someone stopped (`docker compose stop`) or took down (`down`, which also removes the network) stays that way.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

ENGINE_TIMEOUT_SECONDS=120
deadline=$((SECONDS + ENGINE_TIMEOUT_SECONDS))
until docker info >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "the Docker engine did not answer within $ENGINE_TIMEOUT_SECONDS s; see: journalctl -u docker"
    sleep 2
done

containers=$(docker compose ps --all --quiet)
network=$(docker network ls --quiet --filter "label=com.docker.compose.project=${COMPOSE_PROJECT_NAME:-svitlo}")
if [ -z "$containers" ] && [ -z "$network" ]; then
    say "the stack was taken down on purpose; leaving it alone"
    exit 0
fi

to_start=()
for service in data-prep trainer; do
    container=$(docker compose ps --all --quiet "$service")
    if [ -z "$container" ]; then
        to_start+=("$service")
        continue
    fi
    state=$(docker inspect --format '{{.State.Status}} {{.State.ExitCode}} {{if .State.Error}}failed{{end}}' "$container")
    case "$state" in
        created* | dead* | *failed | "exited 127 "*) to_start+=("$service") ;;
    esac
done
if [ "${#to_start[@]}" -eq 0 ]; then
    say "nothing to repair"
    exit 0
fi
say "starting ${to_start[*]}"
# Without `setup`: if a disk is not mounted yet, it would take the empty mount point for a new volume.
docker compose --progress quiet up --detach --no-build --no-recreate --no-deps "${to_start[@]}"
