#!/usr/bin/env bash
# Derives the lock files from pyproject.toml: complete environments as exact names and versions, without an address.
# Pins that already stand in a lock file are kept where they still fit; pass `--upgrade` to renew them.
#
# Needs uv (in dev.lock). The resolver must see torch's CPU build for cpu.lock: point UV_FIND_LINKS at a directory
# with that wheel, or set UV_TORCH_BACKEND=cpu. gpu.lock needs only metadata, so any machine can compile it.
set -euo pipefail
cd "$(dirname "$0")"
uv=$(command -v ../.venv/bin/uv || command -v uv) || { echo "compile.sh: no uv; run 'make setup' first" >&2; exit 1; }

compile() { # compile LOCK EXTRA...: resolves pyproject.toml with these extras into LOCK
  local lock=$1
  shift
  "$uv" pip compile ../pyproject.toml --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@" --output-file "$lock" >/dev/null
}

head_line() { # head_line LOCK TEXT: puts one comment before the pins
  printf '# %s Made by requirements/compile.sh.\n' "$2" | cat - "$1" >"$1.new"
  mv "$1.new" "$1"
}

# torch goes into a CPU environment first and on its own, because every machine finds its CPU build in another way;
# so it is the one package that cpu.lock leaves out.
grep --only-matching --max-count=1 'torch==[0-9.]*' ../pyproject.toml >torch.lock
compile cpu.lock --extra cpu --extra cloud --overrides overrides.txt --no-emit-package torch "$@"

# What dev adds to that. Everything it shares with cpu.lock keeps the version it has there. Left out: rfc3987-syntax, an
# optional part of jsonschema, which Ray imports. It builds a grammar when it is imported: 1.2 of the 1.6 CPU seconds
# that each process of Ray's would take to start.
cp cpu.lock all.lock
cat dev.lock >>all.lock 2>/dev/null || true
compile all.lock --extra cpu --extra cloud --extra dev --overrides overrides.txt --no-emit-package torch \
  --no-emit-package rfc3987-syntax --constraints cpu.lock "$@"
grep -vxFf cpu.lock all.lock >dev.lock
rm all.lock

# The same versions wherever vLLM's CUDA distribution lets us; the CUDA build of torch is the ordinary one, so what
# shows the CPU build to the resolver is taken away.
unset UV_FIND_LINKS UV_TORCH_BACKEND
{ cat cpu.lock; grep -sE '^(torch|vllm|nvidia|cuda|flashinfer|triton)[a-z0-9-]*==' gpu.lock || true; } >gpu.lock.new
mv gpu.lock.new gpu.lock
compile gpu.lock --extra gpu --extra cloud "$@"

head_line cpu.lock "Linux x86_64, Python 3.11+, no GPU; torch is installed before it."
head_line gpu.lock "Linux x86_64, Python 3.11+, CUDA; complete."
head_line dev.lock "What tests and lint need beyond cpu.lock."
