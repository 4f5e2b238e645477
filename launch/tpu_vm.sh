#!/bin/bash
# On all hosts of a TPU slice: TPU=name ZONE=zone launch/tpu_vm.sh --config=FILE --workdir=gs://...
# Needs this repository with its dependencies, pip install -e '.[tpu]', in ~/nova_jax of every host.
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd nova_jax && python3 -m nova_jax.train --coordinator=auto $*"
