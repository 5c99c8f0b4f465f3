#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Takes the records of whole networks that the tables in the documentation are made from. An hour on two cores, with
# nothing else running and the tree committed:
#     benchmarks/records.sh .venv/bin/python cpu-xeon-amx-2-cores
#     SPARSEKERNELS_PEERS=... benchmarks/records.sh .venv/bin/python cpu-xeon-amx-2-cores peers
# Then: python benchmarks/tables.py --write
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 machine=$2 what=${3:-networks}
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
  echo "the tree has changes: the records would be of no commit" >&2
  exit 1
fi
new=$(mktemp -d)
echo "until all is done, records are in $new"

# take FILE OPTIONS: appended to FILE when all is done, so that the tree stays as it was committed
take() {
  local file=$1
  shift
  date +%H:%M:%S
  # it fails where a variant was wrong: the records say so
  "$python" -m sparsekernels bench networks --full --json "$new/one.jsonl" "$@" || true
  cat "$new/one.jsonl" >>"$new/$file.jsonl"
  rm "$new/one.jsonl"
}

if [ "$what" = peers ]; then
  peers=benchmarks/peers/networks.toml
  "$python" -m sparsekernels bench $peers --network vgg16-d --sparsity 80 --sparsity 90 --sparsity 95 --sparsity 98 \
    --json "$new/vgg.jsonl"
  "$python" -m sparsekernels bench $peers --network resnet-50 --json "$new/resnet.jsonl"
  cat "$new/vgg.jsonl" "$new/resnet.jsonl" >"benchmarks/results/$machine-peers.jsonl"
  exit
fi

variants=(--variant dense --variant dense-bf16 --variant dense-fused --variant dense-fused-bf16 --variant converted)
steps=(--pass step --sparsity 80 --sparsity 90 --sparsity 95)
all=(--pass forward --sparsity 50 --sparsity 70 --sparsity 80 --sparsity 90 --sparsity 95 --sparsity 98)
one=(--batch 1 --pass forward --sparsity 80 --sparsity 90 --sparsity 95 "${variants[@]}")
small=(--network lenet-300-100 --network lenet-5-caffe --network alexnet-s --network wrn-28-2)
take networks --network wrn-16-10 --mask random "${steps[@]}" "${variants[@]}"
take networks --network vgg16-d --batch 128 --mask random "${steps[@]}" "${variants[@]}"
take networks "${small[@]}" --mask random "${steps[@]}" "${variants[@]}"
take networks "${small[@]}" --mask random "${all[@]}"
take networks --network vgg16-d --mask random "${all[@]}"
take networks --network resnet-50 --mask random "${all[@]}" "${variants[@]}"
take networks --network wrn-16-10 --mask random "${all[@]}" "${variants[@]}"
take networks --network efficientnet-lite0 --mask magnitude "${all[@]}" "${variants[@]}"
take networks --network resnet-50 --mask random "${steps[@]}" "${variants[@]}"
take networks --network efficientnet-lite0 --mask magnitude "${steps[@]}" "${variants[@]}"
take networks-one-image "${one[@]}" --network vgg16-d --network wrn-16-10 --network resnet-50 --mask random
take networks-one-image "${one[@]}" --network efficientnet-lite0 --mask magnitude
take networks-clustered --network vgg16-d --network resnet-50 --network alexnet-s --pass forward \
  --mask clustered --mask magnitude --sparsity 90
for file in "$new"/*.jsonl; do mv "$file" "benchmarks/results/$machine-$(basename "$file")"; done
