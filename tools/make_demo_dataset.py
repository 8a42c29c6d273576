#!/usr/bin/env python
"""Render the demo data set, a few hundred synthetic images in COCO's instance format."""

import argparse

from gram_backbones.d2.demo_dataset import make_demo_dataset

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="output folder, for instance datasets/gram_demo")
    parser.add_argument("--train", type=int, default=480, help="training images (default: 480)")
    parser.add_argument("--val", type=int, default=80, help="held-out images (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    args = parser.parse_args()
    files = make_demo_dataset(args.root, train=args.train, val=args.val, seed=args.seed)
    print("wrote", ", ".join(map(str, files.values())))
