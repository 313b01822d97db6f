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

# A path as it stands in quotes in a unit. What systemd takes for more than a letter there is refused, before anything changes.
unit_path() {
    case "$1" in *[[:cntrl:]\"\\\$]*) die "the path $1 has a character in it that a boot unit cannot express (a quote, a backslash, a dollar sign)" 2 ;; esac
    echo "${1//%/%%}"
}

project=$(unit_path "$PWD")
docker/install-engine.sh
[ "$(id -u)" = 0 ] || die "only root can install a boot unit; run: sudo make install" 2
problem=$(engine_problem)
[ -z "$problem" ] || die "$problem" 2
# At boot, too, ~ and ${HOME} in .env mean the folder of the person who has called this with sudo.
if [ -n "${SUDO_USER:-}" ]; then HOME=$(getent passwd "$SUDO_USER" | cut -d: -f6) && export HOME; fi
volumes=$(path_setting SVITLO_VOLUMES ./volumes)
volumes=$(unit_path "$(realpath -m "$volumes")")
home=$(unit_path "${HOME:-/root}")
engine=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || true)
unit=$(<docker/svitlo.service)
unit=${unit//@PROJECT@/"$project"}
unit=${unit//@VOLUMES@/"$volumes"}
unit=${unit//@HOME@/"$home"}
unit=${unit//@ENGINE@/"${engine:-/var/lib/docker}"}
echo "$unit" >"$UNIT"
say "wrote $UNIT"
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet docker.service svitlo.service
    say "enabled at boot: docker, svitlo"
else
    say "systemd does not run here, so nothing was enabled; make this machine run docker/boot.sh at boot"
fi
say "in the machine's firmware (BIOS), set the state after a power loss to: on"
