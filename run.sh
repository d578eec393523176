#!/usr/bin/env bash
# ./run.sh                 trains the U-Net on generated scenes, evaluates it and leaves pictures
# ./run.sh ARGS...         python main.py ARGS... in an environment of its own (.venv)
# ./run.sh test [ARGS...]  pytest ARGS... there
#
# PYTHON names the interpreter that .venv is made with (3.11 or newer);
# SEG_JAX_DEVICE=cpu|cuda12|cuda13|tpu the JAX build, which is otherwise chosen by the devices found.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv

find_device() {
  if [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ] || [ -n "${TPU_NAME:-}" ]; then echo tpu
  elif command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then
    # CUDA 13 is for drivers from 580 on, and for Turing and newer.
    nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader |
      awk -F', *' '$1 + 0 < 580 || $2 + 0 < 7.5 {old = 1} END {print old ? "cuda12" : "cuda13"}'
  else echo cpu; fi
}

find_python() {
  for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found; install one, or name it with PYTHON=..." >&2
  exit 2
}

install() {  # requirements of the run, and of the tests where they are asked for
  local python device wanted
  device=${SEG_JAX_DEVICE:-$(find_device)}
  case $device in
    cpu | cuda12 | cuda13 | tpu) ;;
    *) echo "error: SEG_JAX_DEVICE is '$device'; expected cpu, cuda12, cuda13 or tpu" >&2; exit 2 ;;
  esac
  wanted="$device $* $(cat "$here/requirements.txt" "$here/pyproject.toml" | cksum)"
  [ "$(cat "$venv/installed-$1" 2> /dev/null)" = "$wanted" ] && return
  if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then  # none, or one cut short
    python=$(find_python)
    echo "run.sh: making $venv with $("$python" --version), JAX for $device (once, about a minute)"
    "$python" -m venv --clear "$venv"
  else
    echo "run.sh: bringing $venv up to date, JAX for $device"
  fi
  local packages=(-r "$here/requirements.txt")
  case $device in
    cuda* | tpu) packages+=("jax[$device]") ;;
  esac
  [ "$1" = test ] && packages+=(-e "$here[test]")
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
  echo "$wanted" > "$venv/installed-$1"
}

if [ "${1:-}" = test ]; then
  shift
  install test
  cd "$here"
  exec "$venv/bin/python" -m pytest "$@"
fi
install run
# Large arrays in large pages, where the system has them for those who ask: fewer faults and misses.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec "$venv/bin/python" "$here/main.py" "$@"
