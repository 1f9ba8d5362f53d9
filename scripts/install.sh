#!/bin/bash
# Installs hako: Debian packages, the user that QEMU runs as, a virtual environment and the commands.
# Run again, it does only what has changed, which takes about a second. `scripts/uninstall.sh` is the way back.
#
#   PREFIX       where the commands and lib/hako go (/usr/local)
#   HAKO_PYTHON  the Python to use
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
. "$HERE/scripts/lib.sh"
. "$HERE/scripts/packages.sh"

# Each version of hako gets an environment of its own, named by its fingerprint, and the commands change over in one
# step. Running sandboxes go on with the one they were started from.
install_environment() {
    local env
    env=$HOME_DIR/env-$(source_hash)
    if [ ! -e "$env/complete" ]; then
        say "Installing hako into $env ..."
        make_venv "$env" "$HERE"
        touch "$env/complete"
    fi
    write_commands "$PREFIX/bin" "$(site_packages "$env")"
    remove_old_environments "$env"
}

remove_old_environments() {
    local env
    [ -z "$(ls -A "$STATE_ROOT/sandboxes" 2>/dev/null)" ] || return 0
    for env in "$HOME_DIR"/env-*; do
        [ "$env" = "$1" ] || rm -rf "$env"
    done
}

need_root "The installation"
need_debian
mkdir -p "$HOME_DIR"
# shellcheck disable=SC2086
apt_install "QEMU and tools" $PACKAGES
ensure_lists
ensure_python
make_user
install_environment
