# shellcheck shell=bash disable=SC2034
# The Debian packages that hako needs on the host. The guest's packages are not among them: they are fetched when the
# guest image is built and never installed here. Sourced.

# util-linux (setpriv), iproute2 (ip, tc) and passwd are part of nearly every Debian, but not of a minimal container.
# The CNI plugins of containernetworking-plugins run iptables.
PACKAGES="qemu-system-x86 zstd skopeo umoci util-linux iproute2 ca-certificates passwd"
PACKAGES="$PACKAGES containernetworking-plugins iptables"

# What only the tests use: a registry to pull from, a terminal to type into, a check of the scripts; engines that run
# containers with hako, and with what it is compared with.
TEST_PACKAGES="docker-registry tmux shellcheck docker.io containerd podman runc crun catatonit"
# Makes file systems for disks, and looks into them; a packet filter to run on a guest's kernel.
TEST_PACKAGES="$TEST_PACKAGES e2fsprogs erofs-utils btrfs-progs squashfs-tools nftables"

# What only the benchmark uses: what hako is compared with.
BENCH_PACKAGES="runc docker.io iptables podman containerd containernetworking-plugins python3-h2"
