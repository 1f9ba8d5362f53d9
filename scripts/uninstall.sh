#!/bin/bash
# Removes hako and all it made: containers, images, state, configuration, commands, the virtual environment, the
# system user, and the Debian packages that its installation added and nothing else has come to need.
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
. "$HERE/scripts/lib.sh"

stop_containers() {
    local hako=$PREFIX/bin/hako ids
    if [ -n "$(ls -A "$STATE_ROOT/sandboxes" 2>/dev/null)" ] && [ -x "$hako" ]; then
        mapfile -t ids < <("$hako" ps --all --quiet)
        if [ ${#ids[@]} -gt 0 ]; then
            say "Stopping ${#ids[@]} containers ..."
            "$hako" rm --force "${ids[@]}" >/dev/null || true
        fi
    fi
    # VMs that wait in the pool, the processes that keep templates in memory, and zygotes.
    if [ -x "$hako" ]; then
        local config=$CONFIG_FILE
        [ -e "$config" ] || config=/dev/null
        "$hako" --config "$config" pool drain >/dev/null 2>&1 || true
        "$hako" --config "$config" template remove --all >/dev/null || true
    fi
    local left
    left=$(processes_of "$STATE_ROOT/")
    [ -z "$left" ] || die "Processes of hako are still running: $(paste -s -d' ' <<<"$left"). End them and try again."
}

# processes_of DIRECTORY/: the ids of the processes that have been given something inside it.
processes_of() {
    local dir
    for dir in /proc/[0-9]*; do
        if [ "${dir#/proc/}" != $$ ] && tr '\0' ' ' 2>/dev/null <"$dir/cmdline" | grep -qF "$1"; then
            say "${dir#/proc/}"
        fi
    done
}

# A directory of the host may be mounted in there, so nothing is deleted through a mount.
remove_dir() {
    local point
    while read -r point; do
        umount "$point" 2>/dev/null || die "$point is mounted and in use, so $1 is not removed."
    done < <(awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
    # The directory itself may be a file system of its own, which stays, empty.
    rm -rf --one-file-system "$1" 2>/dev/null || [ -z "$(ls -A "$1")" ] || die "$1 could not be removed."
}

remove_user() {
    [ -e "$HOME_DIR/made-user" ] || return 0
    if getent passwd "$VM_USER" >/dev/null; then
        userdel "$VM_USER" || die "The system user $VM_USER could not be removed."
    fi
}

# The bridge of containers' networks outlives them. One with ports is somebody's.
remove_bridge() {
    [ -z "$(ls -A /sys/class/net/hako0/brif 2>/dev/null)" ] || return 0
    ip link delete hako0 2>/dev/null || true
}

need_root "Removing hako"
stop_containers
remove_bridge
remove_dir "$STATE_ROOT"
remove_dir "$DATA_ROOT"
remove_user
apt_remove
for entry in $COMMANDS; do rm -f "$PREFIX/bin/${entry%%=*}"; done
rm -rf "$HOME_DIR" "$(dirname "$CONFIG_FILE")/config.d" "$CONFIG_FILE"
rmdir "$(dirname "$CONFIG_FILE")" 2>/dev/null || true
say "hako is removed."
