#!/usr/bin/env python
"""gram-backbones test, for MMDetection alone: gram_backbones/cli/mmdet.py."""

from gram_backbones.cli.mmdet import test as main

if __name__ == "__main__":
    main()
