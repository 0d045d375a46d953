#!/bin/bash
# Runs the payload's test programs one after the other and marks where each begins and how it ended: tests.sh FILTER; or
# those tests around a reboot whose names begin with PHASE, which may leave jobs: tests.sh '' PHASE.
cd "$HOME" || exit 1
export AGENTD_BIN=/payload/agentd AGENTD_TEST_GUEST=1 AGENTD_TEST_REQUIRE=userns,busybox,guest RUST_BACKTRACE=1 LANG=C.UTF-8
for program in /payload/programs/deps/*; do
  name=${program##*/}
  if [[ $2 ]]; then [[ $name == vm_reboot ]]; else [[ $name != vm_reboot ]]; fi || continue
  echo "@@program $name"
  # A program whose name says that it is meant runs whole.
  filter=$1
  [[ $name == *"$filter"* ]] && filter=$2
  timeout --kill-after=10 600 "$program" --show-output ${filter:+"$filter"} 2>&1
  echo "@@status $?"
done
[[ $2 && $2 != cut_off_ ]] && exit 0
# What a job has made, and nothing else, has such names. systemd removes an empty scope when it gets to it.
left() { find /sys/fs/cgroup -depth -type d -name 'agentd-*'; }
for _ in {1..100}; do [[ $(left) ]] || break; sleep 0.1; done
left | sed 's/^/@@left cgroup /'
for process in /proc/[0-9]*; do
  [[ $(cat "$process/comm" 2>/dev/null) == agentd ]] && echo "@@left process ${process##*/}"
done
true
