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

# The container sees the destination as /backup and cannot tell where that is.
refuse_inside() {
    local volumes folder target
    volumes=$(path_setting SVITLO_VOLUMES ./volumes)
    target=$(realpath -m -- "$1")
    for folder in "$volumes" "$volumes"/{raw,data,checkpoints,logs,export,cache}; do
        case "$target/" in
            "$(realpath -m -- "$folder")"/*)
                die "$1 lies inside $folder, so each backup would copy the ones before it. Choose a folder outside the volumes, best on another disk" 2
                ;;
        esac
    done
}

backup_to() { docker/tools.sh -v "$(realpath "$1"):/backup" -- backup /backup; }

# As with rsync, a colon after a slash belongs to a name on this machine.
case "${destination%%/*}" in
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
        case "$(realpath -m -- "$destination")" in
            *:*) die "$destination has a colon in its path, and no container can have it mounted. Choose another folder" 2 ;;
        esac
        refuse_inside "$destination"
        make_folder "$destination"
        backup_to "$destination"
        ;;
esac
say "backup is in $destination"
