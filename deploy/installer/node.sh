#!/bin/bash
# Installs hako on the Kubernetes node that this pod runs on, and removes it again. Debian nodes only.
#
#   node.sh run      install; then wait, and remove hako at the end if this node is to have it no longer
#   node.sh install  install, tell the container engine, mark the node with the label dev.hako/runtime=ready
#   node.sh remove   the way back: nothing of hako is left on the node
#
# All of them can be repeated. The pod has to be privileged and in the node's pid namespace.
#
#   ROOT                    where the node's file system is mounted (/host)
#   HAKO_ENGINE             containerd, crio, or auto: the one that runs
#   HAKO_CONTAINERD_CONFIG  containerd's configuration (/etc/containerd/config.toml)
#   HAKO_SANDBOXER          podsandbox, or shim: containerd 2 leaves the pod itself to hako
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
BUNDLE=$(cd "$HERE/../../.." && pwd)   # source/ and wheels/

ROOT=${ROOT:-/host}
ENGINE=${HAKO_ENGINE:-auto}
CONFIG=${HAKO_CONTAINERD_CONFIG:-/etc/containerd/config.toml}
SANDBOXER=${HAKO_SANDBOXER:-podsandbox}
READY=${HAKO_READY_FILE:-/run/hako-ready}   # the pod's readiness probe looks for it

# On the node: what the installation is made of, and what it has to remember.
NODE_DIR=/usr/local/lib/hako-node
FOREIGN=$NODE_DIR/foreign              # hako was there before, and stays
STATE=$NODE_DIR/made                   # files of the engine's configuration that were made
HAKO=/usr/local/bin/hako

say() { printf '%s\n' "$*"; }
die() { printf 'Error: %s\n' "$*" >&2; exit 1; }

# on_node COMMAND...: run it on the node as if it had been typed there.
on_node() {
    nsenter --target 1 --mount --uts --ipc --net --pid -- "$@"
}

# as_unit NAME COMMAND...: the same as a unit of systemd's. It has none of the pod's limits, and is not cut off in the
# middle when the pod is killed: a second one is then refused until the first has ended.
as_unit() {
    local name=$1
    shift
    on_node systemd-run --quiet --wait --pipe --collect --unit "hako-node-$name" \
        --setenv PIP_NO_INDEX=1 --setenv "PIP_FIND_LINKS=$NODE_DIR/wheels" -- "$@"
}

find_engine() {
    [ "$ENGINE" = auto ] || return 0
    local name
    for name in crio containerd; do
        if on_node systemctl is-active --quiet "$name"; then ENGINE=$name; return 0; fi
    done
    die "Neither containerd nor crio runs on this node as a service of systemd's."
}

containerd_major() {
    local said
    said=$(on_node containerd --version) || die "containerd does not say its version."
    [[ $said =~ [[:space:]]v?([0-9]+)\.[0-9]+\. ]] || die "containerd's version is not understood: $said"
    say "${BASH_REMATCH[1]}"
}

# engine_config VERB: change the engine's configuration; says whether that made a difference.
engine_config() {
    local options=(--root "$ROOT" --state "$ROOT$STATE")
    if [ "$ENGINE" = containerd ]; then
        options+=(--config "$CONFIG")
        if [ "$1" = add ]; then
            local major
            major=$(containerd_major)
            options+=(--major "$major" --sandboxer "$SANDBOXER")
        fi
    fi
    python3 -I "$HERE/engine_config.py" "$1" "$ENGINE" "${options[@]}"
}

# The engine's own opinion of its new configuration, before it has to live with it.
config_is_good() {
    [ "$ENGINE" = containerd ] || return 0
    local dump
    dump=$(on_node containerd --config "$CONFIG" config dump 2>&1) || { say "$dump" >&2; return 1; }
    grep -Eq 'containerd\.runtimes\.hako\]' <<<"$dump"
}

# Running pods go on meanwhile: the engine's processes for them are not its children.
restart_engine() {
    say "Restarting $ENGINE ..."
    on_node systemctl restart "$ENGINE" && on_node systemctl is-active --quiet "$ENGINE"
}

configure_engine() {
    local said
    said=$(engine_config add) || die "The configuration of $ENGINE was not changed."
    if [ "$said" != changed ]; then return 0; fi
    if ! config_is_good; then
        engine_config remove >/dev/null
        die "$ENGINE does not accept the runtime handler; its configuration is what it was."
    fi
    restart_engine && return 0
    engine_config remove >/dev/null
    restart_engine || true
    die "$ENGINE did not start with the runtime handler; its configuration is what it was."
}

put_files() {
    local target=$ROOT$NODE_DIR
    if [ -e "$ROOT/usr/local/lib/hako" ] && [ ! -e "$target" ]; then
        mkdir -p "$target"
        touch "$ROOT$FOREIGN"
    fi
    mkdir -p "$target"
    rm -rf "$target/new"
    mkdir "$target/new"
    cp -R --no-preserve=ownership "$BUNDLE/source" "$BUNDLE/wheels" "$target/new"
    rm -rf "$target/source" "$target/wheels"
    mv "$target/new/source" "$target/new/wheels" "$target"
    rmdir "$target/new"
}

kube() {
    python3 -I "$HERE/kube.py" "$@"
}

install() {
    find_engine
    put_files
    if [ ! -e "$ROOT$FOREIGN" ]; then
        as_unit install bash "$NODE_DIR/source/scripts/install.sh" || die "hako could not be installed."
    fi
    as_unit image "$HAKO" image build || die "The guest image could not be built."
    on_node containerd-shim-hako-v2 -v >/dev/null || die "The shim does not start."
    # It boots a VM, so a node that is called ready has run one.
    as_unit template "$HAKO" template build || die "A VM did not start; \`hako check\` on the node says why."
    configure_engine
    kube label ready || die "The node could not be marked."
    say "hako is ready on ${NODE_NAME:-this node}."
}

# The pods that still run end as if their VMs had died. The engine needs a moment to be told.
end_pods() {
    local ids _
    [ -x "$ROOT$HAKO" ] || return 0
    for _ in {1..15}; do
        mapfile -t ids < <(on_node "$HAKO" ps --all --quiet)
        [ ${#ids[@]} -gt 0 ] || return 0
        say "Ending ${#ids[@]} containers ..."
        on_node "$HAKO" rm --force "${ids[@]}" >/dev/null || true
        sleep 1
    done
}

remove() {
    local said
    rm -f "$READY"
    # First no new pods come here, then the engine makes none with hako, then those that are left end.
    kube unlabel || say "The label of this node could not be removed." >&2
    find_engine
    said=$(engine_config remove) || die "The configuration of $ENGINE was not changed; hako stays."
    if [ "$said" = changed ]; then
        restart_engine || say "$ENGINE did not start again." >&2
    fi
    if [ ! -e "$ROOT$FOREIGN" ] && [ -e "$ROOT$NODE_DIR/source" ]; then
        end_pods
        as_unit remove bash "$NODE_DIR/source/scripts/uninstall.sh" || die "hako could not be removed."
    fi
    rm -rf "${ROOT:?}$NODE_DIR"
    say "hako is removed from ${NODE_NAME:-this node}."
}

# A pod ends for many reasons: a new version, a restart of the node. hako goes only if nobody wants it here any more.
finish() {
    local status=0
    trap '' TERM INT
    kill "$(jobs -p)" 2>/dev/null || true
    kube wanted || status=$?
    case $status in
        0) say "This pod ends; hako stays." ;;
        3) remove ;;
        *) say "It could not be learnt whether hako is to stay, so it stays." >&2 ;;
    esac
    exit 0
}

run() {
    trap finish TERM INT
    install
    touch "$READY"
    while :; do
        sleep infinity &
        wait $!
    done
}

case ${1:-} in
    run | install | remove) "$1" ;;
    *) die "usage: node.sh run|install|remove" ;;
esac
