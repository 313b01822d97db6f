#!/usr/bin/env bash
# svitlo.service runs this once at every boot. The engine restarts what ran before the power cut. This script repairs what
# the engine cannot: its own network database, if that is damaged and keeps it from starting; containers that vanished with a
# damaged file, lost their network, were created but never started, or failed to start. What someone stopped (`docker compose
# stop`) or took down (`down`, which also removes the network) stays that way.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

ENGINE_TIMEOUT_SECONDS=120
NETWORKS=${SVITLO_ENGINE_ROOT:-/var/lib/docker}/network/files/local-kv.db

volumes=$(path_setting SVITLO_VOLUMES ./volumes)
uid=$(setting PUID 1000)
gid=$(setting PGID 1000)

# A repair, for the log and for the events of the run. Only the owner of the volumes writes there, and never into the empty
# mount point of a disk that is not there yet.
record() {
    local message=${1//\\/\\\\} event as_owner=()
    say "$1"
    [ -e "$volumes/logs/.svitlo-volume" ] || return 0
    if [ "$(id -u)" = 0 ]; then as_owner=(setpriv --reuid "$uid" --regid "$gid" --clear-groups); fi
    event="{\"time\": \"$(date -u +%FT%T+00:00)\", \"event\": \"engine repaired\", \"message\": \"${message//\"/\\\"}\"}"
    # From inside the folder: the owner may have no right to the folders above it.
    # shellcheck disable=SC2016
    (cd "$volumes/logs" && "${as_owner[@]}" sh -c '
        [ -z "$(tail -c 1 events.jsonl 2>/dev/null)" ] || echo >>events.jsonl
        printf "%s\n" "$1" >>events.jsonl && sync events.jsonl' sh "$event") ||
        say "$volumes/logs/events.jsonl: this event could not be kept"
}

# Only if the engine's last start ended in the database: a wrong setting or a missing program keeps it from starting, too.
network_database_is_damaged() {
    local log
    [ -s "$NETWORKS" ] || return 1
    log=$(journalctl --unit docker.service --boot --no-pager --output cat 2>/dev/null |
        awk '/msg="Starting up"|Daemon has completed initialization/ { last = "" } { last = last $0 "\n" } END { printf "%s", last }')
    grep -Eq 'network controller: .*(invalid database|version mismatch|checksum error|invalid character|unexpected end of JSON)' <<<"$log" ||
        { grep -Eq '^(panic: |fatal error: |unexpected fault address)' <<<"$log" && grep -Eq 'libnetwork/.*boltdb|libkv/store/boltdb' <<<"$log"; }
}

deadline=$((SECONDS + ENGINE_TIMEOUT_SECONDS))
until docker info >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "the Docker engine did not answer within $ENGINE_TIMEOUT_SECONDS s; see: journalctl -u docker"
    if network_database_is_damaged; then
        aside=$NETWORKS.damaged-$(date -u +%Y%m%d-%H%M%S)
        mv --no-clobber "$NETWORKS" "$aside"
        record "the engine's network database was damaged and kept the engine from starting; it was put aside as $aside"
        systemctl reset-failed docker.service docker.socket 2>/dev/null || true
        systemctl start --no-block docker.service || true
        deadline=$((SECONDS + ENGINE_TIMEOUT_SECONDS))
    fi
    sleep 2
done

containers=$(docker compose ps --all --quiet)
project=$(setting COMPOSE_PROJECT_NAME svitlo)
network=$(docker network ls --quiet --filter "label=com.docker.compose.project=$project")
if [ -z "$containers" ] && [ -z "$network" ]; then
    say "the stack was taken down on purpose; leaving it alone"
    exit 0
fi

to_start=()
to_make_anew=()
for service in data-prep trainer; do
    container=$(docker compose ps --all --quiet "$service")
    if [ -z "$container" ]; then
        to_start+=("$service")
        continue
    fi
    state=$(docker inspect --format '{{.State.Status}} {{.State.ExitCode}} {{if .State.Error}}failed{{end}}' "$container")
    case "$state" in
        created* | dead* | *failed | "exited 127 "*)
            if network_is_gone "$container"; then to_make_anew+=("$service"); else to_start+=("$service"); fi
            ;;
    esac
done
if [ "${#to_start[@]}" -eq 0 ] && [ "${#to_make_anew[@]}" -eq 0 ]; then
    say "nothing to repair"
    exit 0
fi

# Without `setup`: if a disk is not mounted yet, it would take the empty mount point for a new volume.
start() { docker compose --progress quiet up --detach --no-build --no-deps "$@"; }
all_run=true
if [ "${#to_start[@]}" -gt 0 ]; then
    say "starting ${to_start[*]}"
    start --no-recreate "${to_start[@]}" || all_run=false
fi
# A container holds nothing of the run.
for service in "${to_make_anew[@]}"; do
    if start --force-recreate "$service"; then
        record "$service was made anew: the engine had lost the network of its container"
    else
        all_run=false
    fi
done
$all_run
