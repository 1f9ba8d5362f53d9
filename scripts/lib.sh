# shellcheck shell=bash disable=SC2034
# What the scripts share: messages, Debian packages, the choice of a Python, virtual environments.
# Sourced by bash scripts that have set HERE to the repository's root.

PREFIX=${PREFIX:-/usr/local}
HOME_DIR=$PREFIX/lib/hako            # everything that is installed, but for the commands
PACKAGE_LIST=$HOME_DIR/installed-packages
DATA_ROOT=${HAKO_DATA_ROOT:-/var/lib/hako}
STATE_ROOT=${HAKO_STATE_ROOT:-/run/hako}
CONFIG_FILE=${HAKO_CONFIG:-/etc/hako/config.toml}
VM_USER=${HAKO_VM_USER:-hako-vm}

# The commands that are installed, as name=module:function, one a line.
COMMANDS=$(sed -n '/^\[project.scripts\]/,/^$/s/^\([a-z0-9-]*\) = "\(.*\)"$/\1=\2/p' "$HERE/pyproject.toml")

# No question may wait for an answer that nobody gives, and messages are parsed below.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PIP_DEFAULT_TIMEOUT=60

say() { printf '%s\n' "$*"; }
die() { printf 'Error: %s\n' "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "$1 changes the system. Run it as root, for example with sudo."
}

need_debian() {
    command -v apt-get >/dev/null || die "This needs Debian or a relative of it: apt-get was not found."
    [ "$(uname -m)" = x86_64 ] || die "hako does not run on $(uname -m) yet, only on x86_64."
}

# missing_packages NAME...: those that are not installed, one a line.
missing_packages() {
    local name
    local -A have=()
    while read -r name; do have[$name]=1; done < <(installed_packages)
    for name in "$@"; do [ -n "${have[$name]:-}" ] || say "$name"; done
}

installed_packages() {
    dpkg-query -W -f='${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' | sort -u
}

# ensure_lists: fetch the lists of Debian packages if there are none, as on a fresh machine; the guest image is made of
# packages too.
ensure_lists() {
    local log
    if compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then return 0; fi
    log=$(mktemp /tmp/hako-apt.XXXXXX)
    say "Fetching the lists of Debian packages ..."
    apt_get update >"$log" 2>&1 || apt_failed "$log" "The lists of Debian packages could not be fetched"
    rm -f "$log"
}

# apt_install WHAT NAME...: install what is missing of the packages; WHAT says what for.
# Packages that were not there before are written down for `make uninstall`.
apt_install() {
    local what=$1 missing log before failed=""
    shift
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root "Installing Debian packages"
    log=$(mktemp /tmp/hako-apt.XXXXXX)
    before=$(installed_packages)
    if ! apt-get -q -s install --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        say "Fetching the lists of Debian packages ..."
        apt_get update >"$log" 2>&1 || apt_failed "$log" "The lists of Debian packages could not be fetched"
    fi
    say "Installing $what: ${missing[*]} ($(apt_summary "${missing[@]}")) ..."
    if ! apt_get_install "$log" "${missing[@]}"; then
        # Lists that are too old name files that the mirror no longer has.
        say "  trying again with fresh lists ..."
        apt_get update >>"$log" 2>&1 || true
        apt_get_install "$log" "${missing[@]}" || failed=yes
    fi
    mkdir -p "$HOME_DIR"
    { cat "$PACKAGE_LIST" 2>/dev/null || true; installed_packages | comm -13 <(printf '%s\n' "$before") -; } |
        sort -u >"$PACKAGE_LIST.new"
    mv "$PACKAGE_LIST.new" "$PACKAGE_LIST"
    [ -z "$failed" ] || apt_failed "$log" "apt-get could not install ${missing[*]}"
    rm -f "$log"
}

apt_get() {
    apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null
}

# apt_summary NAME...: how much there is to do: "61 packages, 81.2 MB to download".
apt_summary() {
    { apt_get install --assume-no --no-install-recommends "$@" 2>/dev/null || true; } |
        sed -n -e 's/^.* \([0-9]*\) newly installed,.*/\1 packages/p' \
            -e 's/^Need to get \(.*\) of archives.*/\1 to download/p' |
        paste -s -d, | sed 's/,/, /g'
}

# apt_get_install LOG NAME...: install, printing a line at each fifth of the way.
apt_get_install() {
    local log=$1
    shift
    apt_get -y -o APT::Status-Fd=3 -o Dpkg::Options::=--force-confold install --no-install-recommends "$@" \
        3>&1 >>"$log" 2>&1 | apt_progress
    return "${PIPESTATUS[0]}"
}

apt_progress() {
    local kind percent rest last=""
    while IFS=: read -r kind _ percent rest; do
        case $kind in
            dlstatus) rest="downloading" ;;
            pmstatus) rest="unpacking and setting up" ;;
            *) continue ;;
        esac
        percent=${percent%.*}
        case $percent in '' | *[!0-9]*) continue ;; esac
        if [ "$rest $((percent / 20))" != "$last" ]; then
            last="$rest $((percent / 20))"
            say "  $rest: $((percent / 20 * 20)) %"
        fi
    done
}

apt_failed() {
    local reason
    reason=$(grep -E '^(E|Err|W):' "$1" | tail -n 1)
    die "$2: ${reason:-see the log}. All that apt-get said is in $1."
}

# apt_remove: of the packages that apt_install added, remove those that apt would call no longer needed if nobody
# had asked for them. What something else has come to need stays.
apt_remove() {
    local added gone log
    [ -s "$PACKAGE_LIST" ] || return 0
    mapfile -t added < <(installed_packages | comm -12 - "$PACKAGE_LIST")
    [ ${#added[@]} -gt 0 ] || return 0
    apt-mark auto "${added[@]}" >/dev/null
    mapfile -t gone < <(apt_get -s -o APT::AutoRemove::RecommendsImportant=false \
        -o APT::AutoRemove::SuggestsImportant=false autoremove |
        sed -n 's/^Remv \([^ :]*\).*/\1/p' | sort -u | comm -12 - "$PACKAGE_LIST")
    [ ${#gone[@]} -gt 0 ] || return 0
    say "Removing ${#gone[@]} Debian packages that the installation added ..."
    log=$(mktemp /tmp/hako-apt.XXXXXX)
    apt_get -y purge "${gone[@]}" >"$log" 2>&1 || apt_failed "$log" "apt-get could not remove them"
    rm -f "$log"
}

# The Python for hako: the oldest supported one that is there, so that it is Debian's own where possible.
find_python() {
    local candidate
    for candidate in ${HAKO_PYTHON:-} /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13 \
        /usr/bin/python3.14 /usr/bin/python3; do
        if [ -x "$candidate" ] && "$candidate" -IS -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            readlink -f "$candidate"
            return 0
        fi
    done
    return 1
}

# ensure_python: set PYTHON, installing Debian's where there is none, and with it what makes virtual environments.
ensure_python() {
    PYTHON=$(find_python) || {
        apt_install "Python" python3
        PYTHON=$(find_python) || die "hako needs Python 3.11 or newer; Debian 12 and later have it."
    }
    # Debian keeps the pip that a new environment gets in a package of its own.
    if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
        apt_install "virtual environments for Python" "$(basename "$PYTHON")-venv"
    fi
}

# make_venv DIRECTORY REQUIREMENT...: a fresh virtual environment that holds only what was asked for and what
# that needs: no pip, no setuptools.
make_venv() {
    local venv=$1 log
    shift
    log=$(mktemp /tmp/hako-pip.XXXXXX)
    rm -rf "$venv"
    "$PYTHON" -m venv "$venv" >"$log" 2>&1 || die "$PYTHON could not make $venv: $(tail -n 1 "$log")"
    "$venv/bin/python" -I -m pip install -q "$@" >"$log" 2>&1 || {
        rm -rf "$venv"
        die "pip could not install from PyPI: $(grep -m 1 -i error "$log" || tail -n 1 "$log"). All it said is in $log."
    }
    "$venv/bin/python" -I -m pip uninstall -q -y setuptools pip >"$log" 2>&1 || die "pip failed: $(tail -n 1 "$log")"
    rm -f "$log"
}

site_packages() {
    "$1/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

# The fingerprint of what an installation is made of.
source_hash() {
    (cd "$HERE" && find src pyproject.toml scripts -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum &&
        "$PYTHON" -V) | sha256sum | cut -c 1-12
}

# write_commands DIRECTORY IMPORT_FROM...: the commands in DIRECTORY, running the hako that is found in IMPORT_FROM.
write_commands() {
    local bin=$1 entry
    shift
    mkdir -p "$bin"
    for entry in $COMMANDS; do
        "$PYTHON" -IS "$HERE/scripts/launcher.py" "$bin/${entry%%=*}" "$PYTHON" "${entry#*=}" "$@"
    done
}

# make_user: the system user that QEMU runs as.
make_user() {
    getent passwd "$VM_USER" >/dev/null && return 0
    need_root "Making the system user $VM_USER"
    useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
        --comment "QEMU of hako" "$VM_USER" || die "The system user $VM_USER could not be made."
    mkdir -p "$HOME_DIR"
    touch "$HOME_DIR/made-user"
}
