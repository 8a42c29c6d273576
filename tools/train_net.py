#!/usr/bin/env python
"""Train or evaluate a Detectron2 config: gram_backbones/cli/d2.py."""

from gram_backbones.cli.d2 import load_config, main, parse_args

__all__ = ["load_config", "main", "parse_args"]

if __name__ == "__main__":
    main()
