#!/usr/bin/env bash
# torch 2.13.0 (CPU, Linux): `torchrun` on a machine that is cut off from the one with the c10d store does not end by any of its own
# limits. Its process has failed after ten seconds and is gone; torchrun stands in a read from the store, whose `read_timeout` (60
# seconds) passes with a warning and nothing else, and so do three keep-alives of five seconds. It ends when the kernel closes the
# connection: `net.ipv4.tcp_retries2`, by default 15, which took 929 seconds; 8 takes 105, and 5 less than 20.
#
# Two network namespaces with a cable between them are the machines; two processes sum numbers by gloo with a timeout of ten seconds
# until the cable is pulled, when packets vanish and no connection is closed. The machine with the store sees its process fail, begins
# anew with one machine, and is done after some 20 seconds. Who frees a node by when its job ends waits a quarter of an hour for the
# other one; `sysctl -w net.ipv4.tcp_retries2=8` there makes that two minutes.
#
# Output seen on 2026-11-30, Python 3.11 (after some three minutes):
#   5 retries: the machine with the store ends 0, the other one within 60 seconds: yes
#   15 retries: the machine with the store ends 0, the other one within 120 seconds: no
#
# Exit status 0: as described. 1: it behaves otherwise now. 77: no network namespaces here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unshare --user --map-root-user --net true || exit 77
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/summing.py" <<'PYTHON'
import datetime
import pathlib
import sys
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=10))
if dist.get_world_size() == 1:
    sys.exit(0)
while True:
    dist.all_reduce(torch.ones(4))
    pathlib.Path("met").touch()
    time.sleep(0.05)
PYTHON
cat > "$folder/cut.sh" <<'BASH'
retries=$1 patience=$2
rm -f met
unshare --net sleep infinity &
other=$!
sleep 1
there() { nsenter --target=$other --net "$@"; }
ip link add left type veth peer name right
ip link set right netns $other
ip addr add 10.77.0.1/24 dev left
there ip addr add 10.77.0.2/24 dev right
for device in lo left; do ip link set $device up; done
for device in lo right; do there ip link set $device up; done
there sysctl --quiet -w net.ipv4.tcp_retries2="$retries"
run() {
  torchrun --nnodes=1:2 --nproc-per-node=1 --max-restarts=3 --rdzv-backend=c10d --rdzv-id=job --rdzv-endpoint=10.77.0.1:29400 \
    --local-addr="$1" --rdzv-conf="last_call_timeout=3,is_host=$2" summing.py
}
export -f run
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 OMP_NUM_THREADS=1
GLOO_SOCKET_IFNAME=left run 10.77.0.1 1 > here.log 2>&1 &
first=$!
GLOO_SOCKET_IFNAME=right nsenter --target=$other --net bash -c 'exec > there.log 2>&1; run 10.77.0.2 0' &
second=$!
until [ -e met ]; do sleep 0.2; done
ip link set left down
for _ in $(seq "$patience"); do
  sleep 1
  kill -0 $second 2> /dev/null || break
done
ended=yes
if kill -0 $second 2> /dev/null; then
  ended=no
  pkill -KILL -P $second || true
fi
status=0
wait $first || status=$?
echo "$retries retries: the machine with the store ends $status, the other one within $patience seconds: $ended"
kill $other
BASH
cd "$folder"
export PATH="$folder/env/bin:$PATH"
seen=$(for case in "5 60" "15 120"; do unshare --user --map-root-user --net bash cut.sh $case 2> errors.log; done)
echo "$seen"
[ "$seen" = "5 retries: the machine with the store ends 0, the other one within 60 seconds: yes
15 retries: the machine with the store ends 0, the other one within 120 seconds: no" ]
