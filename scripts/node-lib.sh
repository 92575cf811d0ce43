# Sourced by install, uninstall and upgrade: where things are on a node. These run as root on the node itself.

set -euo pipefail

TOP=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
BASE=/opt/camera-agent
UNITS=/usr/local/lib/systemd/system
SETTINGS=/etc/camera-agent
STATE=/var/lib/camera-agent

# The agent's own units are those of the version in use; those that bring an old version back, of the trusted one
# (agent/cli/update.py copies them when the links change).
CURRENT_UNITS=(camera-agent.service camera-agent@.service)
TRUSTED_UNITS=(camera-agent-settle.service camera-agent-update.service camera-agent-update.path
  camera-agent-calm.service camera-agent-calm.timer)
ENABLED=(camera-agent.service camera-agent-settle.service camera-agent-update.path camera-agent-calm.timer)

JOURNALD=/etc/systemd/journald.conf.d/50-camera-agent.conf
WATCHDOG=/etc/systemd/system.conf.d/50-camera-agent.conf
UPDATES=/etc/apt/apt.conf.d/52camera-agent
NEWER_SYSTEMD=/etc/systemd/system/camera-agent.service.d/10-systemd-254.conf
NEWER_SYSTEMD_TEMPLATE=/etc/systemd/system/camera-agent@.service.d/10-systemd-254.conf

say() { printf '[%s] %s\n' "$(basename "$0")" "$*" >&2; }
die() { printf '[%s] %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" -eq 0 ] || die "needs root: sudo $0 $*"; }

# Is systemd running this machine, or is this a root being prepared (an image, a chroot)?
booted() { [ -d /run/systemd/system ]; }

# point NAME VERSION : the link BASE/NAME leads to that release; atomic, and on the disk when this returns.
point() {
  rm -f "$BASE/$1.new"
  ln -s "releases/$2" "$BASE/$1.new"
  mv -T "$BASE/$1.new" "$BASE/$1"
  sync "$BASE"
}

# put FILE MODE TARGET : install when it differs, so that a second run changes nothing.
put() {
  cmp -s "$1" "$3" || install -D -m "$2" "$1" "$3"
}

# link TARGET NAME
link() {
  [ "$(readlink "$2" 2>/dev/null)" = "$1" ] && return
  install -d -m 755 "$(dirname "$2")"
  ln -sfn "$1" "$2"
}
