#!/bin/bash
# First boot of a provisioned card: cloud-init has applied the seed before this runs; the broker takes the fleet's files.
. /rig/payload/tests/lib.sh
P=/rig/payload
t=$(now)
install -d -m 750 -g mosquitto /etc/mosquitto/camera-agent
install -m 640 -g mosquitto -o mosquitto $P/broker/* /etc/mosquitto/camera-agent/
cp $P/broker/mosquitto.conf /etc/mosquitto/mosquitto.conf
systemctl restart mosquitto || { fail "mosquitto does not take the fleet's files"; journalctl -u mosquitto --no-pager | tail -5; }
if command -v cloud-init >/dev/null; then
  cloud-init status --wait > /rig/out/cloud-init 2>&1
  expect "cloud-init is done with the seed: $(tr '\n' ' ' < /rig/out/cloud-init)" grep -q 'status: done' /rig/out/cloud-init
  cloud-init schema --config-file /boot/firmware/user-data > /rig/out/schema 2>&1 && pass "cloud-init's schema accepts user-data" || fail "user-data: $(cat /rig/out/schema)"
  expect "firstrun.sh (Bookworm) is a script that bash reads" bash -n /boot/firmware/firstrun.sh
else
  expect "firstrun.sh did its work and is gone: $(tail -1 /var/log/camera-agent-first-boot.log)" [ ! -e /boot/firmware/firstrun.sh ]
  expect "and no longer stands on the kernel's command line" bash -c '! grep -q systemd.run /boot/firmware/cmdline.txt'
fi
expect "the host is named after the node: $(hostname)" [ "$(hostname)" = phuong-thuan-hoa-cua-chinh ]
expect "the site's time zone" [ "$(readlink -f /etc/localtime)" = /usr/share/zoneinfo/Asia/Ho_Chi_Minh ]
expect "the installer may log in by key, and has no password" bash -c 'grep -q AAAAC3 /home/installer/.ssh/authorized_keys && getent shadow installer | cut -d: -f2 | grep -q "^[!*]"'
expect_within 30 "the agent runs" is_ready
well() { sees 'frames [1-9].*broker connected'; }
expect_within 30 "with frames, at the broker over TLS with its own certificate: $(status)" well
password=$(cat $P/dashboard.password)
sub() { timeout 15 mosquitto_sub -h 127.0.0.1 -p 8884 --cafile $P/broker/ca.crt -u dashboard -P "$password" -V mqttv5 "$@"; }
sub -t edgecam/v1/phuong-thuan-hoa/cua-chinh/meta -C 1 > /rig/out/meta 2>/rig/out/meta.err
expect "under its name: $(grep -o '"name":"[^"]*"' /rig/out/meta | head -1)" grep -q 'Cửa chính' /rig/out/meta
camera-agent-as check --config /etc/camera-agent/agent.toml > /rig/out/check 2>&1
expect "camera-agent-as check: $(grep broker /rig/out/check)" grep -q '^pass  broker' /rig/out/check
camera-agent-as aim --config /etc/camera-agent/agent.toml --seconds 4 > /rig/out/aim 2>&1
expect "camera-agent-as aim leaves a record: $(grep published /rig/out/aim)" grep -q '^published on' /rig/out/aim
cp /var/lib/camera-agent/commissioning/* /rig/out/ 2>/dev/null
expect "no secret is left on the boot partition" bash -c '! ls /boot/firmware/camera-agent/mqtt-key /boot/firmware/camera-agent/mqtt-cert 2>/dev/null && ! grep -rlq "PRIVATE KEY" /boot/firmware --include=* --exclude-dir=bundle'
expect "credentials are root's alone" [ "$(stat -c '%a %U' /etc/credstore/camera-agent.mqtt-key)" = "600 root" ]
# another node's certificate: may write its own topics, not this node's; no certificate: nothing
pub() { mosquitto_pub -h 127.0.0.1 -p 8883 --cafile $P/broker/ca.crt "$@" -V mqttv5 -q 1 -t "$topic" -m x 2>&1; }
topic=edgecam/v1/phuong-thuan-hoa/kho/event
expect "another node may write its own topics" bash -c "! mosquitto_pub -h 127.0.0.1 -p 8883 --cafile $P/broker/ca.crt --cert $P/kho/mqtt-cert --key $P/kho/mqtt-key -V mqttv5 -q 1 -t $topic -m x 2>&1 | grep -qi 'not authorized'"
topic=edgecam/v1/phuong-thuan-hoa/cua-chinh/event
if pub --cert $P/kho/mqtt-cert --key $P/kho/mqtt-key | grep -qi 'not authorized'; then pass "but not this node's"; else fail "kho may write cua-chinh's topics"; fi
if pub > /rig/out/nocert; then fail "without a certificate one gets in"; else pass "without a certificate nobody gets in"; fi
echo "$FAILS" > /rig/out/fails
systemctl --no-block exit "$((FAILS > 0))"
