#!/bin/bash
# Trains on two hosts: two_hosts.sh ARGUMENTS OF nova_jax.train
# The hosts are network name spaces of this machine with addresses and names of their own, joined by
# a cable. Needs root (Linux, iproute2).
set -eu
hosts=("nova$$a" "nova$$b")
clean_up() {
  for host in "${hosts[@]}"; do
    ip netns del "$host" 2> /dev/null || true
    rm -rf "/etc/netns/$host"
  done
}
trap clean_up EXIT
for host in "${hosts[@]}"; do
  ip netns add "$host"
  mkdir -p "/etc/netns/$host"
  printf '127.0.0.1 localhost\n10.77.0.1 %s\n10.77.0.2 %s\n' "${hosts[@]}" > "/etc/netns/$host/hosts"
done
ip link add name eth0 netns "${hosts[0]}" type veth peer name eth0 netns "${hosts[1]}"
for i in 0 1; do
  ip -n "${hosts[i]}" address add "10.77.0.$((i + 1))/24" dev eth0
  ip -n "${hosts[i]}" link set lo up
  ip -n "${hosts[i]}" link set eth0 up
done
for i in 0 1; do
  ip netns exec "${hosts[i]}" unshare --uts sh -c 'hostname "$0"; exec "$@"' "${hosts[i]}" \
    python -m nova_jax.train --coordinator="${hosts[0]}:8476" --num_processes=2 --process_id=$i "$@" &
done
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "${status:-0}"
