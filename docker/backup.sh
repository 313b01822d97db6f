#!/usr/bin/env bash
# Copies everything that matters into a new, dated folder: `docker/backup.sh DEST`. Works while training runs. DEST is a
# folder (a mounted disk) or a target that rsync understands (host:folder).
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

destination=${1:-}
[ -n "$destination" ] || die "no destination given. Use: make backup DEST=/media/disk/svitlo (or DEST=user@host:folder)" 2
need_engine
uid=$(setting PUID 1000)
gid=$(setting PGID 1000)

make_folder() {
    [ -d "$1" ] && return
    mkdir -p "$1"
    if [ "$(id -u)" = 0 ]; then chown "$uid:$gid" "$1"; fi
}

backup_to() { docker/tools.sh -v "$(realpath "$1"):/backup" -- backup /backup; }

case "$destination" in
    *:*)
        have rsync || die "rsync is not installed; run: apt-get install rsync" 2
        staging=$(path_setting SVITLO_VOLUMES ./volumes)/.backup
        make_folder "$staging"
        trap 'rm -rf "$staging"' EXIT
        backup_to "$staging"
        say "sending it to $destination"
        # The checksums go last: a folder without them is incomplete.
        rsync --archive --partial --exclude SHA256SUMS "$staging/" "$destination/"
        rsync --archive "$staging/" "$destination/"
        ;;
    *)
        make_folder "$destination"
        backup_to "$destination"
        ;;
esac
say "backup is in $destination"
