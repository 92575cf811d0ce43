# Sourced by the scripts that run inside the booted machine: PASS and FAIL lines, times, waiting for a fact.
FAILS=0
pass() { echo "PASS $*"; }
fail() { echo "FAIL $*"; FAILS=$((FAILS + 1)); }
now() { date +%s%3N; }
seconds() { awk -v ms=$(( $(now) - $1 )) 'BEGIN { printf "%.1f s", ms / 1000 }'; }
# within LIMIT_MS SINCE WORDS... : PASS if not more than the limit has gone since.
within() {
  local limit=$1 since=$2 took; shift 2; took=$(seconds "$since")
  if [ $(( $(now) - since )) -le "$limit" ]; then pass "$* ($took)"; else fail "$* took $took, limit $((limit / 1000)) s"; fi
}
# patient MS : the limit on a machine that has nothing else to do; longer by as much as it is overloaded.
patient() { awk -v ms="$1" -v cores="$(nproc)" '{ share = $1 / cores; print int(ms * (share > 1 ? share : 1)) }' /proc/loadavg; }
# holds LIMIT_S COMMAND... : try it until it succeeds; three times as long where the machine is busy with something else.
holds() {
  local end=$((SECONDS + 3 * $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}
expect() { local words=$1; shift; if "$@"; then pass "$words"; else fail "$words"; fi; }
expect_within() { local limit=$1 words=$2; shift 2; if holds "$limit" "$@"; then pass "$words"; else fail "$words"; fi; }

UNIT=camera-agent.service
main_pid() { systemctl show -P MainPID $UNIT; }
is_ready() { [ "$(systemctl show -P ActiveState $UNIT)" = active ]; }
# renewed PID : another process than PID is READY.
renewed() { is_ready && [ "$(main_pid)" != "$1" ] && [ "$(main_pid)" != 0 ]; }
status() { systemctl show -P StatusText $UNIT; }
sees() { status | grep -Eq "$1"; }
current() { basename "$(readlink /opt/camera-agent/current)"; }
clips_verify() { (cd / && runuser -u camera-agent -- camera-agent clips verify --directory /var/lib/camera-agent); }
# Every file outside what lives by itself: what an installer could leave behind.
footprint() {
  find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /rig -o -path /var/log \
    -o -path /var/tmp -o -path /var/cache -o -path /var/lib/systemd -o -path /var/lib/mosquitto -o -path /root \
    -o -path /var/lib/private -o -path /var/lib/cloud -o -path /var/lib/dbus \) -prune -o -printf '%y %m %u %p\n' |
    grep -v -e ' /etc/\(passwd\|group\|shadow\|gshadow\|subuid\|subgid\)-\?$' -e '/etc/\.pwd\.lock$' -e ' /etc/\.updated$' -e ' /var/\.updated$' |
    grep -v -e '__pycache__' -e ' /var$' -e ' /etc$' -e '/etc/machine-id' | sort
}
