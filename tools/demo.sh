#!/usr/bin/env bash
# The main job on an embedded data set: render it, train Mask R-CNN with AOGNet-4M from scratch on
# whatever this machine has, evaluate on held-out images, leave metrics and pictures in output/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
MMDET=none bash tools/setup.sh  # Detectron2 is all it takes
python=${VENV:-.venv}/bin/python
out=${1:-output/demo}
start=$(date +%s)
export DETECTRON2_DATASETS="$out/datasets"
"$python" tools/make_demo_dataset.py "$DETECTRON2_DATASETS/gram_demo"
"$python" tools/train_net.py --config d2_configs/demo_mask_rcnn_aognet4m_fpn.yaml OUTPUT_DIR "$out"
"$python" tools/show_metrics.py "$out/metrics.json"
echo "Took $(($(date +%s) - start)) s. Pictures: $out/inference/gram_demo_val/pictures"
