#!/bin/bash
# Installs what the benchmark needs beside hako itself, which `make run` installs.
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
. "$HERE/scripts/lib.sh"
. "$HERE/scripts/packages.sh"

need_debian
# shellcheck disable=SC2086
apt_install "what the benchmark uses" python3 $BENCH_PACKAGES
