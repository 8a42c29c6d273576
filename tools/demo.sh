#!/usr/bin/env bash
# The main job on an embedded data set: render it, train Mask R-CNN with AOGNet-4M from scratch on
# whatever this machine has, evaluate on held-out images, predict, leave it all in output/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
MMDET=none bash tools/setup.sh  # Detectron2 is all it takes
python=${VENV:-.venv}/bin/python
out=${1:-output/demo}
start=$(date +%s)
export DETECTRON2_DATASETS="$out/datasets"
"$python" tools/make_demo_dataset.py "$DETECTRON2_DATASETS/gram_demo"
"$python" tools/train_net.py --config d2_configs/demo_mask_rcnn_aognet4m_fpn.yaml OUTPUT_DIR "$out"
echo "Predicting on ten held-out images, as you can on your own"
"$python" -m gram_backbones predict "$out/config.yaml" "$out/model_final.pth" \
    "$DETECTRON2_DATASETS"/gram_demo/val/00000?.png --output "$out/predictions"
"$python" -m gram_backbones report "$out"
"$python" tools/show_metrics.py --classes "$out"
cat <<END

Took $(($(date +%s) - start)) s. Open
  $out/report.html                                     curves, AP, images and config, on one page
  $out/predictions/000000.png                          what was predicted on ten held-out images
  $out/inference/gram_demo_val/pictures/000000.png     predictions next to the truth, 32 images
  $out/log.txt                                         the log of the training

Next, type
  $python -m gram_backbones predict $out/config.yaml $out/model_final.pth YOUR_PICTURES
  $python -m gram_backbones train --help        # your own data: docs/own-data.md
  $python -m gram_backbones --help              # all commands
END
