#!/usr/bin/env bash
# The rows that need a GPU, one after another, each written to $OUT as soon as it is there. Each has a time limit.
#
#   OUT=FOLDER benchmarks/gpu.sh [MODEL TEXT]
#
# MODEL is a folder of SmolLM2-135M and TEXT a text for it; without them that row is left out, and it is said. The machine
# may be bare: torch, transformers and peft, no network. SIZE=small (and no GPU) tries the script itself on a processor.
# What a row printed is in $OUT/NAME.log, its exit status in $OUT/rows.tsv, its JSON and table in $OUT/out.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/out/gpu}
PYTHON=${PYTHON:-python3}
SIZE=${SIZE:-7b}
WHOLE=${WHOLE:-8b}
STEPS=${STEPS:-200}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$OUT/out"

row() { # name, seconds at most, command...
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" > "$OUT/$name.log" 2>&1 || status=$?
  printf '%s\t%s\t%s s\t%s\n' "$name" "$status" "$((SECONDS - start))" "$*" | tee -a "$OUT/rows.tsv"
  cp -f benchmarks/out/*.json benchmarks/out/*.md "$OUT/out/" 2> /dev/null
  tail -n 25 "$OUT/$name.log"
}

: > "$OUT/rows.tsv"
"$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' | tee "$OUT/machine.txt"
row scoring 100 "$PYTHON" benchmarks/scoring.py --size "$SIZE" --steps 6
row scoring-accumulated 60 "$PYTHON" benchmarks/scoring.py --size "$SIZE" --steps 4 --accumulate 4 --ways plain,triton
row true-gradient 60 "$PYTHON" benchmarks/scoring.py --size "$SIZE" --steps 4 --ways plain,triton,naive
if [ $# -ge 2 ]; then
  row smollm2 100 "$PYTHON" benchmarks/cost.py --model "$1" --data "$2" --steps "$STEPS"
else
  echo "no MODEL and TEXT were named: the row smollm2 is left out" | tee -a "$OUT/rows.tsv"
fi
row whole 240 "$PYTHON" benchmarks/cost.py --size "$WHOLE" --dtype bfloat16 --batch 4 --context 512 --steps "$STEPS" --way default
echo "the row of a 4-bit base (lpc compress --load-in 4bit, 7B under 10 GiB) needs bitsandbytes for CUDA and waits" | tee -a "$OUT/rows.tsv"
awk -F'\t' '$2 ~ /^[0-9]+$/ && $2 != 0 { bad = 1 } END { exit bad }' "$OUT/rows.tsv"
