#!/bin/bash
# Installs from a checkout, over the network: Debian packages from apt, Python's from the index that pip is set to.
. /rig/payload/tests/lib.sh
P=/rig/payload
set -a; . $P/environment; set +a
cp -r $P/source /root/source
footprint > /rig/out/before
t=$(now); /root/source/scripts/install --no-start > /rig/out/install.log 2>&1; rc=$?
[ $rc = 0 ] && pass "installed from a checkout, online ($(seconds "$t")): $(tail -1 /rig/out/install.log)" || { fail "install: $(tail -20 /rig/out/install.log)"; }
install -m 644 $P/quick.toml /etc/camera-agent/quick.toml
t=$(now); /root/source/scripts/install --config $P/agent.toml > /rig/out/install2.log 2>&1 || fail "install --config: $(cat /rig/out/install2.log)"
expect "the second run built nothing anew ($(seconds "$t"))" bash -c '! grep -q building /rig/out/install2.log'
expect_within 10 "READY and frames come, with no broker there: $(status)" sees 'frames [1-9].*broker absent'

# --- unattended security updates, at a minute of this node's own
expect "unattended-upgrades is installed" bash -c 'dpkg-query -W -f "\${Status}" unattended-upgrades | grep -q "ok installed"'
at=$(apt-config dump | sed -n 's/^Unattended-Upgrade::Automatic-Reboot-Time "\(.*\)";/\1/p')
expect "apt knows when this node may reboot: $at" grep -Eq '^0[23]:[0-5][0-9]$' <<< "$at"
expect "apt's daily work is on" bash -c 'apt-config dump | grep -q "APT::Periodic::Unattended-Upgrade \"1\""'
unattended-upgrade --dry-run --debug > /rig/out/unattended.log 2>&1; rc=$?
expect "unattended-upgrade --dry-run takes these settings (ended with $rc)" bash -c "[ $rc = 0 ] && grep -qi security /rig/out/unattended.log"
hostname another-node; $P/source/scripts/install --no-start > /rig/out/install3.log 2>&1
other=$(apt-config dump | sed -n 's/^Unattended-Upgrade::Automatic-Reboot-Time "\(.*\)";/\1/p')
expect "a node of another name reboots at another time: $other" [ "$at" != "$other" ]

/root/source/scripts/uninstall --purge > /rig/out/uninstall.log 2>&1 || fail "uninstall: $(cat /rig/out/uninstall.log)"
expect "uninstall leaves nothing of ours" bash -c '! find / -xdev -not -path "/rig/*" -not -path "/root/*" -not -path "/proc/*" -not -path "/var/log/*" -not -path "/tmp/*" -name "*camera-agent*" | grep .'
echo "$FAILS" > /rig/out/fails
systemctl --no-block exit "$((FAILS > 0))"
