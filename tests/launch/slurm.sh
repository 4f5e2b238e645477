#!/bin/bash
# Runs a command on a SLURM of one node, this machine: slurm.sh DIRECTORY COMMAND...
# Needs root and, on Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
set -eu
dir=$1 host=$(hostname -s)
shift
mkdir -p "$dir"/{state,spool}
chmod 755 "$dir"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
cat > "$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthInfo=socket=$dir/munge.socket
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=$host Default=YES
CONF
head -c 1024 /dev/urandom > "$dir/munge.key"
chmod 400 "$dir/munge.key"
export SLURM_CONF=$dir/slurm.conf
munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
  --pid-file="$dir/munge.pid" --log-file="$dir/munge.log" --seed-file="$dir/munge.seed" \
  > "$dir/munge.out" 2>&1 &
trap 'kill $(jobs -p); wait' EXIT
until [ -S "$dir/munge.socket" ]; do sleep 0.1; done
slurmctld -D > "$dir/slurmctld.out" 2>&1 &
slurmd -D > "$dir/slurmd.out" 2>&1 &
for _ in {1..300}; do [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ] && break; sleep 0.1; done
"$@"
