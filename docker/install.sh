#!/usr/bin/env bash
# Installs the engine if there is none, and the unit that repairs the stack at boot. Run as root. `--remove` removes the unit.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

UNIT=${SVITLO_UNIT_FOLDER:-/etc/systemd/system}/svitlo.service

if [ "${1:-}" = --remove ]; then
    [ -e "$UNIT" ] || { say "no boot unit is installed" && exit 0; }
    [ "$(id -u)" = 0 ] || die "only root can remove $UNIT; run: sudo make uninstall" 2
    systemctl disable svitlo.service >/dev/null 2>&1 || true
    rm -f "$UNIT"
    systemctl daemon-reload 2>/dev/null || true
    say "removed $UNIT; the engine, the images and the volumes stay"
    exit 0
fi

docker/install-engine.sh
[ "$(id -u)" = 0 ] || die "only root can install a boot unit; run: sudo make install" 2
project=$(pwd)
volumes=$(realpath -m "$(setting SVITLO_VOLUMES ./volumes)")
case "$project$volumes" in *[[:space:]]*) die "the path of the project or of the volumes contains a space, which the boot unit cannot express" 2 ;; esac
engine=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || true)
sed -e "s|@PROJECT@|$project|g" -e "s|@VOLUMES@|$volumes|g" -e "s|@ENGINE@|${engine:-/var/lib/docker}|g" docker/svitlo.service >"$UNIT"
say "wrote $UNIT"
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet docker.service svitlo.service
    say "enabled at boot: docker, svitlo"
else
    say "systemd does not run here, so nothing was enabled; make this machine run docker/boot.sh at boot"
fi
say "in the machine's firmware (BIOS), set the state after a power loss to: on"
