#!/bin/bash
# Builds the guest image if there is none, runs a first container in its own VM and shows both kernels.
set -euo pipefail
HERE=$(cd "$(dirname "$0")/.." && pwd)
. "$HERE/scripts/lib.sh"

hako=$PREFIX/bin/hako
ensure_python

# The image busybox comes from a Debian package, so that no registry is needed.
make_sample() {
    "$HOME_DIR/env-$(source_hash)/bin/python" -I - <<'EOP'
import sys
from hako.errors import HakoError
from hako.ociimage.sample import make_sample

try:
    make_sample(progress=lambda line: print(f"{line} ...", flush=True))
except HakoError as error:
    sys.exit(f"Error: {error}")
EOP
}

# On standard error it tells of its steps, of which the first time has many: a minute's worth.
"$hako" image build >/dev/null
make_sample
guest=$("$hako" run --rm busybox uname -r) || die "The first container did not run; \`hako check\` says what is missing."
say ""
say "The host's kernel:      $(uname -r)"
say "The container's kernel: $guest"
say ""
say "hako is ready. Try: hako run -it busybox sh"
