#!/bin/bash
# First boot: install, events, hang and crashes, probes, upgrades; ends in the middle of a trial, where the host cuts
# the power.
. /rig/payload/tests/lib.sh
P=/rig/payload
systemctl --version | head -1

# --- another user's secrets, for the probes; a broker; the state before
mkdir -p /home/somebody /srv && echo secret > /home/somebody/secret && echo secret > /srv/secret
chmod 700 /home/somebody && chmod 600 /home/somebody/secret /srv/secret
systemctl is-active --quiet mosquitto || systemctl start mosquitto
footprint > /rig/out/before

# --- install from the bundle, with no network at all
install -d /var/tmp/settings && cp $P/quick.toml $P/agent.toml /var/tmp/settings/
t=$(now); $P/bundle/scripts/install --no-start > /rig/out/install.log 2>&1; rc=$?
[ $rc = 0 ] && pass "installed from a bundle, offline ($(seconds "$t"))" || { fail "install: $(cat /rig/out/install.log)"; exit 1; }
expect "without settings it is skipped, not failed" bash -c 'systemctl start camera-agent; [ "$(systemctl is-active camera-agent)" = inactive ]'
install -m 644 $P/quick.toml /etc/camera-agent/quick.toml
install -m 644 $P/release.pub /etc/camera-agent/release.pub
install -m 600 <(echo probe-secret) /etc/credstore/camera-agent.mqtt-password
mkdir -p /etc/systemd/system/camera-agent.service.d
printf '[Service]\nWatchdogSec=6\nTimeoutAbortSec=3\n' > /etc/systemd/system/camera-agent.service.d/99-test.conf
t=$(now); $P/bundle/scripts/install --config $P/agent.toml > /rig/out/install2.log 2>&1 || fail "install --config: $(cat /rig/out/install2.log)"
expect "the second run installed nothing anew" bash -c '! grep -q building /rig/out/install2.log'
t=$(now); systemctl restart $UNIT; within "$(patient 10000)" "$t" "READY after systemctl restart"
is_ready || { journalctl -u $UNIT --no-pager | tail -40; exit 1; }
settled() { footprint | grep -v ' /var/lib/camera-agent/'; }
settled > /rig/out/installed; $P/bundle/scripts/install > /rig/out/install3.log 2>&1; settled > /rig/out/again
expect "installing again changes nothing" cmp -s /rig/out/installed /rig/out/again

# --- events at a broker
camera-agent watch --host 127.0.0.1 --json > /rig/out/watch.jsonl 2>/rig/out/watch.err &
watcher=$!
count() { grep -c "\"type\": \"$1\"" /rig/out/watch.jsonl; }
at_least() { [ "$(count "$1")" -ge "$2" ]; }
expect_within 20 "events at the broker" at_least event 2
expect_within 20 "a clip at the broker" at_least clip 1
expect_within 10 "STATUS tells frames and broker: $(status)" sees 'frames [1-9].*broker connected'

# --- hang and crashes: back in time, nothing lost
sleep_between() { systemctl start camera-agent-calm.service; }
p=$(main_pid); t=$(now); kill -STOP "$p"
holds 40 renewed "$p"; within "$(patient 20000)" "$t" "SIGSTOP: restarted by the watchdog (WatchdogSec=6 here, 30 on a node)"
journalctl -u $UNIT -o cat --no-pager | grep -q "Watchdog timeout" && pass "the journal names the watchdog" || fail "no watchdog in the journal"
sleep_between
expect "camera-agent-calm set the restart count back" [ "$(systemctl show -P NRestarts $UNIT)" = 0 ]
for signal in KILL SEGV; do
  expect_within 30 "a clip is being recorded" sees '^recording'
  p=$(main_pid); t=$(now); kill -$signal "$p"
  holds 20 renewed "$p"; within "$(patient 3000)" "$t" "SIG$signal: READY again, load $(cut -d' ' -f1 /proc/loadavg) on $(nproc) cores"
done
journalctl -u $UNIT -o cat --no-pager | grep -q "Fatal Python error: Segmentation fault" && pass "a SIGSEGV leaves a trace in the journal" || fail "no Python trace after SIGSEGV"
before=$(count clip)
expect_within 30 "clips go on" at_least clip $((before + 1))

touch /rig/out/timed
# --- the sandbox
systemd-analyze verify /usr/local/lib/systemd/system/camera-agent*.service /usr/local/lib/systemd/system/camera-agent*.timer > /rig/out/verify 2>&1
cp "/usr/local/lib/systemd/system/camera-agent@.service" /rig/out/template.service
expect "systemd-analyze verify has nothing to say: $(head -2 /rig/out/verify)" [ ! -s /rig/out/verify ]
for unit in camera-agent.service camera-agent@left.service; do
  systemd-analyze security --no-pager $unit > "/rig/out/security-$unit" 2>&1
  score=$(grep -o 'Overall exposure level.*: [0-9.]*' "/rig/out/security-$unit" | grep -o '[0-9.]*$')
  expect "exposure of $unit is ${score:-unknown}, at most 1.5" awk -v s="${score:-9}" 'BEGIN { exit !(s <= 1.5) }'
done
sed -e '/^ExecStart=/d' -e '/^Watchdog\|^Restart\|^Type=\|^NotifyAccess\|^TimeoutAbort/d' \
  -e "s|^\[Service\]|[Service]\nType=oneshot\nExecStart=/opt/camera-agent/current/bin/python $P/tests/probe.py sandbox\nStandardOutput=append:/rig/out/probe\nStandardError=append:/rig/out/probe.err|" \
  /usr/local/lib/systemd/system/camera-agent.service > /run/systemd/system/camera-agent-probe.service
systemctl daemon-reload; : > /rig/out/probe
systemctl start camera-agent-probe.service; rc=$?
grep -E '^(PASS|FAIL|NOTE)' /rig/out/probe || cat /rig/out/probe.err; FAILS=$((FAILS + $(grep -c '^FAIL' /rig/out/probe)))
[ $rc = 0 ] || fail "probe unit: $(tail -3 /rig/out/probe.err)"
install -d /run/camera-agent
/opt/camera-agent/current/bin/python $P/tests/probe.py control > /rig/out/control 2>/rig/out/control.err; cat /rig/out/control; FAILS=$((FAILS + $(grep -c '^FAIL' /rig/out/control)))
rm -rf /var/lib/camera-agent/probe
expect "the running agent listens on nothing: $(ss -ltnup | grep -c users) sockets of others" bash -c "! ss -ltnup | grep -q 'pid=$(main_pid),'"
if [ "$(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')" -ge 254 ]; then
  install -d -m 700 /etc/credstore.encrypted
  echo sealed | systemd-creds encrypt --name=camera-agent.mqtt-key - /etc/credstore.encrypted/camera-agent.mqtt-key 2> /rig/out/creds.err
  sed -e '/^ExecStart=/d' -e '/^Watchdog\|^Restart\|^Type=\|^NotifyAccess\|^TimeoutAbort/d' -e "s|^\[Service\]|[Service]\nType=oneshot\nExecStart=/bin/cat %d/camera-agent.mqtt-key\nStandardOutput=truncate:/rig/out/unsealed|" \
    /usr/local/lib/systemd/system/camera-agent.service > /run/systemd/system/camera-agent-sealed.service
  install -d /run/systemd/system/camera-agent-sealed.service.d && cp /etc/systemd/system/camera-agent.service.d/10-systemd-254.conf /run/systemd/system/camera-agent-sealed.service.d/
  systemctl daemon-reload; systemctl start camera-agent-sealed.service
  expect "a credential encrypted for this host is handed over in clear" [ "$(cat /rig/out/unsealed)" = sealed ]
  expect "also to camera-agent-as" grep -q 'ImportCredential=camera-agent' /usr/local/sbin/camera-agent-as
  rm /etc/credstore.encrypted/camera-agent.mqtt-key
fi
reach() { systemd-run -q --wait --pipe --collect "$@" python3 -c 'import socket; socket.create_connection(("127.0.0.1", 1883), 1)' >/dev/null 2>&1; }
expect "the site drop-in lets the broker's address through" reach -p IPAddressDeny=any -p IPAddressAllow=127.0.0.1
if reach -p IPAddressDeny=any -p IPAddressAllow=192.0.2.1; then fail "IPAddressDeny is not enforced"; else pass "the site drop-in denies other addresses"; fi

# --- the system's drop-ins, each in force and each to be left out
expect "the journal is limited: $(journalctl -u systemd-journald -o cat --no-pager | grep -o 'max [0-9.]*M' | tail -1)" bash -c 'journalctl -u systemd-journald -o cat --no-pager | tail -2 | grep -Eq "max (32|64)(\.0)?M"'
expect "the hardware watchdog is asked for 14 s" [ "$(systemctl show --property=RuntimeWatchdogUSec --value)" = 14s ]
at=$(apt-config dump | sed -n 's/^Unattended-Upgrade::Automatic-Reboot-Time "\(.*\)";/\1/p')
expect "a security update reboots this node at $at" grep -Eq '^0[23]:[0-5][0-9]$' <<< "$at"
$P/bundle/scripts/install --without journald,watchdog,updates > /rig/out/without.log 2>&1 || fail "install --without: $(cat /rig/out/without.log)"
expect "each can be left out" bash -c '! ls /etc/systemd/journald.conf.d/50-camera-agent.conf /etc/systemd/system.conf.d/50-camera-agent.conf /etc/apt/apt.conf.d/52camera-agent 2>/dev/null | grep .'
expect "and the watchdog is then asked for nothing" [ "$(systemctl show --property=RuntimeWatchdogUSec --value)" != 14s ]
$P/bundle/scripts/install > /rig/out/with.log 2>&1 || fail "install again: $(cat /rig/out/with.log)"
expect "and put back" [ -e /etc/systemd/journald.conf.d/50-camera-agent.conf ]
# the relax drop-in, whole: the node runs with it, and it gives what it says
share=/opt/camera-agent/current/share/camera-agent
cp $share/systemd/drop-ins/relax.conf /etc/systemd/system/camera-agent.service.d/50-relax.conf
install -d /run/systemd/system/camera-agent-probe.service.d && cp $share/systemd/drop-ins/relax.conf /run/systemd/system/camera-agent-probe.service.d/
sed -i 's/probe.py sandbox/probe.py relaxed/' /run/systemd/system/camera-agent-probe.service
systemctl daemon-reload; systemctl restart $UNIT
expect_within 20 "with the relax drop-in it runs" sees 'frames [1-9]'
: > /rig/out/probe; systemctl start camera-agent-probe.service; grep -E '^(PASS|FAIL|NOTE)' /rig/out/probe || fail "relaxed probe: $(tail -3 /rig/out/probe.err)"
FAILS=$((FAILS + $(grep -c '^FAIL' /rig/out/probe)))
expect "its exposure then: $(systemd-analyze security --no-pager $UNIT | grep -o 'level.*: [0-9.]*')" true
rm -rf /etc/systemd/system/camera-agent.service.d/50-relax.conf /run/systemd/system/camera-agent-probe.service.d
systemctl daemon-reload; systemctl restart $UNIT

# --- upgrades
upgrade() { camera-agent-upgrade "$@" --stable 4 > /rig/out/upgrade.log 2>&1; }
well() { is_ready && sees 'frames [1-9].*broker connected'; }
for bad in $P/packages/bad-*.package; do
  camera-agent-upgrade "$bad" > /rig/out/refused 2>&1 && fail "$(basename "$bad") was installed"
  grep -q 'install package' /rig/out/refused || fail "$(basename "$bad"): $(cat /rig/out/refused)"
done
expect "damaged, unsigned and foreign packages are refused: $(tail -1 /rig/out/refused)" [ "$(current)" = "$(cat $P/base)" ]
# --- over MQTT: the agent fetches and drops, root verifies and tries
(cd $P/packages && exec python3 -m http.server 8000 --bind 127.0.0.1) > /rig/out/http.log 2>&1 &
server=$!
topic=edgecam/v1/ward-12/door
retained() { mosquitto_sub -t "$topic/$1" -C 1 -W 5 -V mqttv5; }
says() { retained "$1" | grep -Eq "$2"; }
# order ID VERSION FILE : the update command, and its answer.
order() {
  mosquitto_sub -t "$topic/rsp/test" -C 1 -W 60 -V mqttv5 > "/rig/out/answer-$1" & local sub=$!
  sleep 0.5
  mosquitto_pub -V mqttv5 -q 1 -t "$topic/cmd/update" -m "{\"id\":\"$1\",\"client\":\"test\",\"args\":{\"version\":\"$2\",\"url\":\"http://127.0.0.1:8000/$3.package\"}}"
  wait $sub
  cat "/rig/out/answer-$1"
}
expect "B/update says what runs: $(retained update)" says update '"installed":"[0-9.]*".*"possible":true'
for bad in payload unsigned renamed; do
  version=9.0.1; [ $bad != renamed ] || version=9.0.9
  order "bad-$bad" $version bad-$bad > /rig/out/refused
  grep -q '"code":"refused"' /rig/out/refused || fail "bad-$bad by MQTT: $(cat /rig/out/refused)"
done
expect "bad packages are refused by the agent: $(cat /rig/out/answer-bad-* | grep -o 'package: [^"]*' | sort -u | paste -sd ';')" [ -z "$(ls -A /var/lib/camera-agent/incoming)" ]
expect "update --verify-only: $(camera-agent update $P/packages/good.package --verify-only)" [ "$(current)" = "$(cat $P/base)" ]
t=$(now); upgrade $P/packages/good.package; rc=$?
[ $rc = 0 ] && [ "$(current)" = 9.0.1 ] && pass "a good version is kept ($(seconds "$t"))" || { fail "good upgrade rc=$rc current=$(current)"; cat /rig/out/upgrade.log; }
install -d /etc/systemd/system/camera-agent-update.service.d
printf '[Service]\nExecStart=\nExecStart=/opt/camera-agent/trusted/bin/camera-agent update --incoming /var/lib/camera-agent/incoming --stable 4\n' > /etc/systemd/system/camera-agent-update.service.d/99-test.conf
systemctl daemon-reload
t=$(now); order crash 9.0.2 crashing > /rig/out/crash
expect "a version that crashes is fetched and handed over ($(seconds "$t")): $(cat /rig/out/crash)" grep -q handed-over /rig/out/crash
expect_within 120 "it goes, the old one is back" says update '"installed":"9.0.1".*"phase":"idle".*"version":"9.0.2","verdict":"failed"'
[ "$(current)" = 9.0.1 ] && holds 30 well && pass "and well ($(seconds "$t")): $(retained update | grep -o '"last":{[^}]*}')" || fail "after a crash: $(current), $(status)"
t=$(now); upgrade $P/packages/silent.package --limit 6; rc=$?
[ $rc = 1 ] && [ "$(current)" = 9.0.1 ] && holds 30 well && pass "a version that is never READY goes ($(seconds "$t")): $(tail -1 /rig/out/upgrade.log)" || { fail "never-ready upgrade rc=$rc"; cat /rig/out/upgrade.log; }
camera-agent-upgrade $P/packages/silent.package > /rig/out/again-refused 2>&1
expect "a version that failed its trial is not tried again: $(tail -1 /rig/out/again-refused | cut -c1-100)" grep -q 'it failed its trial' /rig/out/again-refused
t=$(now); camera-agent rollout 9.0.4 http://127.0.0.1:8000/next.package --site ward-12 --stages 100 --patience 150 > /rig/out/rollout.log 2>&1; rc=$?
[ $rc = 0 ] && [ "$(current)" = 9.0.4 ] && pass "camera-agent rollout brings a good version over MQTT ($(seconds "$t")): $(tail -1 /rig/out/rollout.log)" || { fail "rollout rc=$rc current=$(current): $(cat /rig/out/rollout.log)"; journalctl -u camera-agent-update --no-pager | tail; }
expect "meta says so: $(retained meta | grep -o '"agent_version":"[^"]*"')" says meta '"agent_version":"9.0.4"'
expect "and Home Assistant too" bash -c "mosquitto_sub -t homeassistant/device/ward-12_door/config -C 1 -W 5 -V mqttv5 | grep -q 'ha-update-9.0.4-'"
camera-agent rollout 9.0.3 http://127.0.0.1:8000/silent.package --site ward-12 --stages 100 > /rig/out/rollout2.log 2>&1; rc=$?
expect "a roll-out that fails says so: $(tail -2 /rig/out/rollout2.log | head -1)" [ $rc = 1 ]
kill $server
rm -rf /etc/systemd/system/camera-agent-update.service.d; systemctl daemon-reload
updater_is_done() { [ "$(systemctl is-active camera-agent-update)" = inactive ]; }
expect_within 30 "the updater ends" updater_is_done
# an updater that is killed
camera-agent-upgrade $P/packages/silent.package --again --older --stable 4 --limit 60 > /rig/out/killed.log 2>&1 &
on_trial() { [ "$(current)" = 9.0.3 ]; }
if holds 60 on_trial; then kill -KILL "$(systemctl show -P MainPID "$(systemctl list-units --plain --no-legend --state=activating,active "camera-agent-upgrade-*" | cut -d" " -f1)")"; else fail "no trial to kill: $(cat /rig/out/killed.log)"; fi
brought_back() { [ "$(current)" = 9.0.4 ] && [ ! -e /opt/camera-agent/trial.json ]; }
expect_within 20 "an updater that is killed leaves nothing on trial" brought_back
expect_within 30 "and the old version runs" well

# --- nothing lost over all of this
# A picture under way comes after the words behind it: until it is there, its number is missing.
no_gaps() { python3 $P/tests/gaps.py /rig/out/watch.jsonl > /rig/out/gaps; }
holds 20 no_gaps || FAILS=$((FAILS + 1))
cat /rig/out/gaps
kill -TERM $watcher; wait $watcher
clips_verify > /rig/out/clips 2>&1; expect "camera-agent clips verify: $(tail -1 /rig/out/clips)" grep -q . /rig/out/clips
clips_verify >/dev/null 2>&1 || fail "clips verify: $(tail -3 /rig/out/clips)"
journalctl -u $UNIT -o cat --no-pager > /rig/out/agent.log
[ "$(grep -c 'Operation not permitted' /rig/out/agent.log)" = 0 ] && pass "the sandbox was never in the agent's way" || fail "$(grep -m3 'not permitted' /rig/out/agent.log)"
echo "$FAILS" > /rig/out/fails

# --- and now a trial, in which the power goes
camera-agent-upgrade $P/packages/silent.package --again --older --stable 4 --limit 600 > /rig/out/cut.log 2>&1 &
holds 60 on_trial || fail "the last trial did not begin: $(cat /rig/out/cut.log)"
echo "$FAILS" > /rig/out/fails
touch /rig/out/cut-the-power
sleep 600
