#!/usr/bin/env bash
# Trains on a slice of Cloud TPU, from a checkout on your own machine: creates or reuses the slice of that name,
# installs this commit on all its workers, starts the program on all, shows their output, and starts again after a
# preemption. Needs gcloud, logged in. See launch/README.md.
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--image=RUNTIME] [--spot] [--delete] [--dry-run] -- \
#       --config=configs/cranio_diff.py --workdir=gs://BUCKET/RUN
set -euo pipefail
cd "$(dirname "$0")/.."

image=v2-alpha-tpuv5-lite spot="" delete="" dry="" name="" zone="" type=""
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --spot) spot=--spot ;;
    --delete) delete=yes ;;
    --dry-run) dry=yes ;;
    --) shift; break ;;
    *) echo "tpu_pod.sh: $1 is not a flag; the program's flags come after --" >&2; exit 2 ;;
  esac
  shift
done
for needed in name zone type; do
  [ -n "${!needed}" ] || { echo "tpu_pod.sh: --$needed= is missing" >&2; exit 2; }
done
case " $* " in
  *" --workdir=gs://"*) ;;
  *) echo "tpu_pod.sh: --workdir=gs://... is missing after --: the workers share no disk, and a preempted slice loses its own" >&2; exit 2 ;;
esac

run() {
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
tpu() { run gcloud compute tpus tpu-vm "$1" "$name" "--zone=$zone" "${@:2}"; }
everywhere() { tpu ssh --worker=all "--command=$1"; }
state() { gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" "--format=value(state)" 2>/dev/null || echo NONE; }

prepare() {
  local now=NONE
  [ -n "$dry" ] || now=$(state)
  case "$now" in
    READY) ;;
    NONE) tpu create "--accelerator-type=$type" "--version=$image" ${spot:+$spot} ;;
    *) tpu delete --quiet; tpu create "--accelerator-type=$type" "--version=$image" ${spot:+$spot} ;;  # preempted, or worse
  esac
  local code=cranio_jax-$(git rev-parse --short HEAD).tar.gz
  run git archive "--output=/tmp/$code" HEAD
  run gcloud compute tpus tpu-vm scp "/tmp/$code" "$name:" "--zone=$zone" --worker=all
  # The images' own Python is too old for JAX.
  local uv='~/.local/bin/uv'
  everywhere "mkdir -p cranio_jax && tar xzf $code -C cranio_jax && python3 -m pip install -q --user uv \
    && $uv venv -q --clear --python=3.12 env && $uv pip install -q --python=env/bin/python 'jax[tpu]' -e './cranio_jax[gcs]'"
}

arguments=$(printf '%q ' "$@")
while true; do
  prepare
  code=0
  everywhere "cd cranio_jax && exec ../env/bin/python -m cranio_jax.main $arguments" || code=$?
  [ -z "$dry" ] || break
  if [ "$code" = 0 ]; then break; fi
  # 75: stopped on request, and the state is saved. 255 and no slice: the connection went with it.
  if [ "$code" != 75 ] && [ "$(state)" = READY ]; then
    echo "tpu_pod.sh: ended with $code, but the slice is up: not started again" >&2
    exit "$code"
  fi
  echo "tpu_pod.sh: preempted; starting again" >&2
  sleep "${PAUSE:-30}"
done
if [ -n "$delete" ]; then tpu delete --quiet; fi
