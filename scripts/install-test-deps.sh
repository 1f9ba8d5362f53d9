#!/bin/bash
# Prepares a clone for its tests: Debian packages that only tests use, and .venv with the development tools, whose
# bin/hako runs the clone's own source.
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
. "$HERE/scripts/lib.sh"
. "$HERE/scripts/packages.sh"

VENV=$HERE/.venv

# The pinned tools and the run-time dependencies that pyproject.toml names.
requirements() {
    "$PYTHON" -I - "$HERE/pyproject.toml" <<'EOP'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
EOP
}

# Tests start engines and registries themselves. Their packages would start services, and fail where that is not
# possible; Debian asks this file first. A machine that has one keeps it.
POLICY=/usr/sbin/policy-rc.d
no_services() {
    [ ! -e "$POLICY" ] || return 0
    trap 'rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

need_debian
# shellcheck disable=SC2086
apt_install "what hako runs on" $PACKAGES
# shellcheck disable=SC2086
if [ -n "$(missing_packages $TEST_PACKAGES)" ]; then
    need_root "Installing Debian packages"
    no_services
    apt_install "what the tests use" $TEST_PACKAGES
fi
ensure_lists
# What hako's shim is tested under beside this Debian's own containerd.
bash "$HERE/scripts/fetch-containerd.sh" "$HERE/.cache/containerd-sid" sid
ensure_python
make_user
mapfile -t wanted < <(requirements)
stamp="$("$PYTHON" -V) ${wanted[*]}"
if [ "$(cat "$VENV/complete" 2>/dev/null)" != "$stamp" ]; then
    say "Installing the development tools into .venv ..."
    make_venv "$VENV" "${wanted[@]}"
    printf '%s\n' "$stamp" >"$VENV/complete"
fi
write_commands "$VENV/bin" "$HERE/src" "$(site_packages "$VENV")"
