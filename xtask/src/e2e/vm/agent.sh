#!/bin/bash
# The guest's side of the conversation, over one virtio port: the host sends a line "TIME USER COMMAND", the guest
# answers with what the command says and a last line "@@ended CODE". "@@ready" is its first word.
#
# Rule: it never gives up its descriptor: a saved machine is restored in the middle of the `read`.
exec 3<>/dev/virtio-ports/agentd.e2e || exit 1
echo @@ready >&3
while :; do
  # The end of input means that no host is there, which is so between saving and restoring.
  IFS=' ' read -r -u 3 time user command || { sleep 0.05; continue; }
  date --set="@$time" >/dev/null
  # The second disk is the host's to fill; the kernel saw another before it was saved.
  if ! mountpoint -q /payload; then
    mkdir -p /payload
    blockdev --flushbufs /dev/vdb && mount -o ro /dev/vdb /payload 2>/dev/null
  fi
  if [ "$user" = root ]; then
    (cd / && exec bash -c "$command") </dev/null 2>&1
  else
    # A session as login makes one, with a subtree of cgroups that is the user's.
    systemd-run --quiet --pipe --wait --collect -p User="$user" -p PAMName=login -p WorkingDirectory='~' \
      -p OOMScoreAdjust=0 -- bash -c "$command" </dev/null 2>&1
  fi >&3
  echo "@@ended $?" >&3
done
