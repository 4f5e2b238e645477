#!/bin/bash
# One process for each GPU of this machine: launch/local_multigpu.sh --config=FILE --workdir=DIR
# `python -m nova_jax.train` alone uses all GPUs too; processes of their own share the data loading.
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
for ((i = 0; i < processes; i++)); do
  CUDA_VISIBLE_DEVICES=$i python -m nova_jax.train --coordinator=localhost:${PORT:-8476} \
    --num_processes="$processes" --process_id=$i "$@" &
done
trap 'kill $(jobs -p)' INT TERM # they save and end
for job in $(jobs -p); do
  wait "$job" || wait "$job" || status=1 # the trap cuts the first one short
done
exit ${status:-0}
