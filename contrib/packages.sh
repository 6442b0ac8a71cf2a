#!/bin/sh
# Installs the Debian packages that a make target needs, if any is missing.
#   packages.sh run       what an agent needs on its node
#   packages.sh generate  the protobuf compiler
#   packages.sh test      all of these, a C compiler for the race detector, and the peers of the tests
set -eu

run="e2fsprogs fuse3 kmod util-linux xfsprogs"
generate="libprotobuf-dev protobuf-compiler"
peers="busybox-static ca-certificates containerd cpio docker.io fio iproute2 iptables libnbd-bin \
nbdkit openssl procps qemu-system-x86 qemu-utils runc"
compiler="gcc libc6-dev git"

case "${1:-}" in
run) want="$run" ;;
generate) want="$generate" ;;
test) want="$run $generate $peers $compiler" ;;
*)
	echo "packages.sh: say which: run, generate or test" >&2
	exit 2
	;;
esac

missing=
for p in $want; do
	case "$(dpkg-query -W -f '${Status}' "$p" 2>/dev/null || true)" in
	"install ok installed") ;;
	*) missing="$missing $p" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "packages.sh: these Debian packages are missing:$missing" >&2
	echo "packages.sh: install them, or run this as root" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# A service that starts by itself would compete with the tests' own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
apt-get update -q
# shellcheck disable=SC2086 # a list of words on purpose
apt-get install -q -y --no-install-recommends $missing
