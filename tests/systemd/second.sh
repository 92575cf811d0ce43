#!/bin/bash
# Second boot, after the power cut in the middle of a trial: the old version is back; then uninstall.
. /rig/payload/tests/lib.sh
well() { is_ready && sees 'frames [1-9]'; }
expect "after a power cut in a trial the old version is back" [ "$(current)" = 9.0.4 ]
expect "the trial is closed" [ ! -e /opt/camera-agent/trial.json ]
expect "the unit is the old version's too" cmp -s /usr/local/lib/systemd/system/camera-agent.service /opt/camera-agent/current/share/camera-agent/systemd/camera-agent.service
expect_within 20 "and runs: $(status)" well
camera-agent update --list
expect "the attempt is counted as interrupted" bash -c 'camera-agent update --list | grep -q "9.0.3: interrupted"'
clips_verify > /rig/out/clips2 2>&1 && pass "clips verify after the cut: $(tail -1 /rig/out/clips2)" || fail "clips: $(tail -3 /rig/out/clips2)"
journalctl -b -u camera-agent-settle -o cat --no-pager | grep back

cp -a /opt/camera-agent/current/share/camera-agent/scripts /run/scripts
camera-agent-uninstall > /rig/out/uninstall.log 2>&1 || fail "uninstall: $(cat /rig/out/uninstall.log)"
footprint > /rig/out/after
comm -13 /rig/out/before /rig/out/after | grep -v -e '/etc/camera-agent' -e '/var/lib/camera-agent' -e '/etc/credstore' > /rig/out/left
expect "uninstall leaves settings, credentials, clips and nothing else: $(head -3 /rig/out/left | xargs)" [ ! -s /rig/out/left ]
expect "clips are still there" bash -c 'ls /var/lib/camera-agent/clips/*.mp4 >/dev/null'
/run/scripts/uninstall --purge > /rig/out/purge.log 2>&1 || fail "purge: $(cat /rig/out/purge.log)"
footprint > /rig/out/after
comm -3 /rig/out/before /rig/out/after > /rig/out/left
expect "uninstall --purge leaves nothing: $(head -3 /rig/out/left | xargs)" [ ! -s /rig/out/left ]
expect "and no user" bash -c '! getent passwd camera-agent'
expect "no failed units" [ -z "$(systemctl list-units --state=failed --plain --no-legend 'camera-agent*')" ]
echo "$FAILS" > /rig/out/fails
systemctl --no-block exit "$((FAILS > 0))"
