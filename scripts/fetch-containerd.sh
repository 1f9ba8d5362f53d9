#!/bin/bash
# fetch-containerd.sh DIRECTORY RELEASE: unpacks the containerd of another release of Debian into DIRECTORY, where there
# is none yet. Nothing is installed. apt checks the signatures, with lists and sources of its own: to the machine's apt
# that other release stays unknown.
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
. "$HERE/scripts/lib.sh"

TARGET=$1 RELEASE=$2
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

[ ! -x "$TARGET/usr/bin/containerd" ] || exit 0
need_debian
[ -e "$KEYS" ] || die "The keys of Debian's archive are not in $KEYS: install debian-archive-keyring."
say "Fetching containerd of Debian's $RELEASE for the tests ..."
mkdir -p "$(dirname "$TARGET")"
WORK=$(mktemp -d "$TARGET.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
LOG=$(mktemp /tmp/hako-apt.XXXXXX)

# The mirror that this machine's own packages come from has the other releases too.
# shellcheck disable=SC2016 # apt fills it in
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
mkdir -p "$WORK/sources" "$WORK/lists/partial" "$WORK/archives/partial" "$WORK/tree"
touch "$WORK/status"
printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$KEYS" "${mirror:-http://deb.debian.org/debian}" "$RELEASE" \
    >"$WORK/sources/other.list"

own_apt() {
    (cd "$WORK" && apt_get -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$WORK/sources" \
        -o Dir::State="$WORK" -o Dir::State::status="$WORK/status" -o Dir::Cache="$WORK" \
        -o APT::Sandbox::User=root "$@" >"$LOG" 2>&1)
}

own_apt update || apt_failed "$LOG" "The lists of Debian's $RELEASE could not be fetched"
own_apt download containerd || apt_failed "$LOG" "The containerd of Debian's $RELEASE could not be fetched"
dpkg-deb -x "$WORK"/containerd_*.deb "$WORK/tree"
"$WORK/tree/usr/bin/containerd" --version >"$LOG" 2>&1 ||
    die "The containerd of Debian's $RELEASE does not run here: $(tail -n 1 "$LOG")"
chmod 755 "$WORK/tree"
rm -rf "$TARGET"
mv "$WORK/tree" "$TARGET"
rm -f "$LOG"
