#!/usr/bin/env bash
# Fits .env to this machine: CPUs for the trainer, and the user that owns the volumes. Keeps values that are already set.
# `docker/env.sh --print` prints the values and writes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

MOST_CPUS=6

# The first logical CPU of each physical core, up to MOST_CPUS, as "0,2,4".
trainer_cpus() {
    local sys=${SVITLO_SYSFS:-/sys}/devices/system/cpu cpu siblings cpus=() seen=' '
    for cpu in $(expand_cpus "$(cat "$sys/online")"); do
        siblings=$(cat "$sys/cpu$cpu/topology/thread_siblings_list" 2>/dev/null || echo "$cpu")
        siblings=$(expand_cpus "$siblings" | head -n 1)
        if [[ "$seen" != *" $siblings "* ]]; then
            seen+="$siblings "
            cpus+=("$cpu")
        fi
    done
    cpus=("${cpus[@]:0:MOST_CPUS}")
    local IFS=,
    echo "${cpus[*]}"
}

# Never root. With sudo, the user who called it. Otherwise the first user that Debian and Ubuntu create.
owner_uid() {
    local uid
    uid=$(id -u)
    if [ "$uid" = 0 ]; then uid=${SUDO_UID:-0}; fi
    if [ "$uid" = 0 ]; then echo 1000; else echo "$uid"; fi
}
owner_gid() {
    local gid
    gid=$(id -g)
    if [ "$(id -u)" = 0 ]; then gid=${SUDO_GID:-0}; fi
    if [ "$gid" = 0 ]; then echo 1000; else echo "$gid"; fi
}

if [ "${1:-}" = --print ]; then
    echo "PUID=$(owner_uid)"
    echo "PGID=$(owner_gid)"
    echo "TRAINER_CPUS=$(trainer_cpus)"
    exit
fi

# Sets a variable in .env, where .env.example explains it, unless it already has a value there.
set_unless_set() {
    local present
    present=$(unset "$1" && setting "$1" '')
    if [ -n "$present" ]; then
        return
    elif grep -q "^#* *$1=" .env; then
        sed -i "0,/^#* *$1=.*/s//$1=$2/" .env
    else
        echo "$1=$2" >>.env
    fi
    say "wrote $1=$2 to .env"
}

[ -f .env ] || cp .env.example .env
# Without a line feed at the end, what is appended would become part of the last value.
[ -z "$(tail -c 1 .env)" ] || echo >>.env
set_unless_set PUID "$(owner_uid)"
set_unless_set PGID "$(owner_gid)"
set_unless_set TRAINER_CPUS "$(trainer_cpus)"

# Creates the folders, so that text can go into raw/ before the first start. Only `svitlo setup` marks them as set up.
volumes=$(path_setting SVITLO_VOLUMES ./volumes)
uid=$(setting PUID 1000)
gid=$(setting PGID 1000)
for folder in "$volumes" "$volumes"/{raw,data,checkpoints,logs,export,cache}; do
    [ -d "$folder" ] && continue
    mkdir -p "$folder"
    if [ "$(id -u)" = 0 ]; then chown "$uid:$gid" "$folder"; fi
done
