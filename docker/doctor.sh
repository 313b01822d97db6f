#!/usr/bin/env bash
# Checks this machine and reports what is fine and what is not, with a remedy for each problem. Changes nothing. Exit code 1
# if something keeps the stack from running.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

failures=0
line() { printf '%-5s %-13s %s\n' "$1" "$2" "$3"; }
good() { line ok "$1" "$2"; }
warn() { line warn "$1" "$2"; }
fail() {
    line FAIL "$1" "$2"
    failures=$((failures + 1))
}

volumes=$(path_setting SVITLO_VOLUMES ./volumes)

check_engine() {
    local version problem
    if ! version=$(timeout 20 docker version --format '{{.Server.Version}}' 2>/dev/null); then
        fail engine "no Docker engine answers; install or start it: sudo make install"
        return 1
    fi
    problem=$(engine_problem)
    if [ -n "$problem" ]; then fail engine "$version; $problem"; else good engine "Docker $version"; fi
    if version=$(docker compose version --short 2>/dev/null); then
        case "$version" in
            [01].* | v[01].*) fail compose "version $version is too old, 2.20 or newer is needed; run: sudo make install" ;;
            *) good compose "version $version" ;;
        esac
    else
        fail compose "'docker compose' does not work; run: sudo make install"
    fi
}

check_boot() {
    if [ ! -d /run/systemd/system ]; then
        warn boot "systemd does not run here: make sure that dockerd and docker/boot.sh start at boot"
        return
    fi
    if systemctl is-enabled --quiet docker.service 2>/dev/null; then
        good boot "the engine starts at boot"
    else
        fail boot "the engine does not start at boot, so nothing comes back after a power cut; run: sudo make install"
    fi
    if systemctl is-enabled --quiet svitlo.service 2>/dev/null; then
        good "boot unit" "enabled"
    else
        warn "boot unit" "not installed: damaged containers would not be repaired at boot; run: sudo make install"
    fi
}

check_cpus() {
    local wanted here fitting
    wanted=$(setting TRAINER_CPUS 0-5)
    here=$(docker info --format '{{.NCPU}}' 2>/dev/null || nproc)
    fitting=$(docker/env.sh --print | sed -n 's/^TRAINER_CPUS=//p')
    if [ "$(expand_cpus "$wanted" | sort -n | tail -n 1)" -ge "$here" ]; then
        fail cpus "TRAINER_CPUS is $wanted, but there are $here CPUs (0-$((here - 1))); set TRAINER_CPUS=$fitting in .env, or run: make env"
    elif [ "$(expand_cpus "$wanted")" = "$(expand_cpus "$fitting")" ]; then
        good cpus "the trainer is pinned to $wanted of $here logical CPUs"
    else
        warn cpus "TRAINER_CPUS is $wanted; one CPU per physical core would be $fitting"
    fi
}

check_threads() {
    local problem
    problem=$(threads_problem)
    if [ -z "$problem" ]; then
        good threads "as many as the trainer has CPUs"
    elif has_begun; then
        warn threads "$problem for the next run (make new-run); the run that has begun keeps its number"
    else
        warn threads "$problem before the run begins"
    fi
}

check_memory() {
    local total
    total=$(awk '/^MemTotal/ { printf "%d", $2 / 1000 }' /proc/meminfo)
    if [ "$total" -lt 3500 ]; then
        fail memory "$total MB; training the default model needs 4 GB"
    elif [ "$total" -lt 7500 ]; then
        warn memory "$total MB is enough for the default model but leaves little for anything else"
    else
        good memory "$total MB"
    fi
}

check_disk() {
    local folder=$volumes free kind options
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df --output=avail --block-size=1000000 "$folder" | tail -n 1 | tr -d ' ')
    if [ "$free" -lt 3000 ]; then
        fail disk "$free MB free for $volumes; a run needs 3 GB, the images 4 GB more"
    elif [ "$free" -lt 20000 ]; then
        warn disk "$free MB free for $volumes; 20 GB leaves room for data, checkpoints and a backup"
    else
        good disk "$free MB free for $volumes"
    fi
    kind=$(findmnt --noheadings --output FSTYPE --target "$folder" 2>/dev/null || stat -f -c %T "$folder")
    options=$(findmnt --noheadings --output OPTIONS --target "$folder" 2>/dev/null || true)
    case "$kind" in
        ext4 | xfs | btrfs | zfs | f2fs | ext2/ext3) good "file system" "$kind" ;;
        tmpfs | ramfs | overlay) fail "file system" "$kind: its files are lost in a power cut; set SVITLO_VOLUMES to a folder on a disk" ;;
        *) warn "file system" "$kind: not known to survive a power cut; ext4 and XFS were tested" ;;
    esac
    case ",$options," in
        *,nobarrier,* | *,barrier=0,*) fail "file system" "mounted without write barriers, so a power cut can damage it; remove nobarrier from /etc/fstab" ;;
    esac
}

check_clock() {
    case "$(timedatectl show --property NTPSynchronized --value 2>/dev/null || true)" in
        yes) good clock "synchronised" ;;
        no) warn clock "not synchronised: times in reports may be wrong, training is not affected; run: timedatectl set-ntp true" ;;
        *) warn clock "cannot tell whether it is synchronised; training is not affected" ;;
    esac
}

check_volumes() {
    local name missing=()
    for name in raw data checkpoints logs export cache; do
        [ -e "$volumes/$name/.svitlo-volume" ] || missing+=("$name")
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        good volumes "$volumes is set up"
    elif [ "${#missing[@]}" -eq 6 ]; then
        warn volumes "$volumes is not set up yet (make up does it); if it was set up before, its disk is not mounted"
    else
        fail volumes "$volumes: no marker in ${missing[*]}; if a disk is not mounted there, mount it; otherwise run: make up"
    fi
}

check_mounts() {
    local problem
    problem=$(mounts_problem)
    if [ -n "$problem" ]; then fail mounts "$problem"; else good mounts "the containers can read configuration and token"; fi
}

check_services() {
    local service container state
    for service in data-prep trainer; do
        container=$(docker compose ps --all --quiet "$service" 2>/dev/null || true)
        if [ -z "$container" ]; then
            warn "$service" "not started; run: make up"
            continue
        fi
        state=$(docker inspect --format '{{.State.Status}}{{if .State.Health}}, {{.State.Health.Status}}{{end}}' "$container")
        case "$state" in
            "running, unhealthy") fail "$service" "unhealthy: $(docker exec "$container" sed -n 2p /tmp/health 2>/dev/null || echo "see: make logs")" ;;
            running*) good "$service" "$state" ;;
            restarting*) fail "$service" "keeps exiting and restarting; see: make logs" ;;
            *) warn "$service" "$state; start it with: make up" ;;
        esac
    done
}

engine=true
check_engine || engine=false
check_boot
check_cpus
check_threads
check_memory
check_disk
check_clock
check_volumes
check_mounts
if $engine; then check_services; fi
[ "$failures" -eq 0 ] || exit 1
