#!/usr/bin/env bash
# A model trained for several latencies, decoded at each: the table "Latencies" of README.md.
# egs/digits/latencies.sh EXP [LATENCY ...]      EXP was trained by `run.sh --recipe conformer`
set -euo pipefail
exp=$1 latencies=("${@:2}")
((${#latencies[@]})) || latencies=(80 240 560 1120)
for latency in "${latencies[@]}"; do asr decode "$exp" --data test --stream --latency "$latency" --threads 1; done
asr decode "$exp" --data test --latency full --threads 1
