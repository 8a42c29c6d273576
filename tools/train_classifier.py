#!/usr/bin/env python
"""The command gram-backbones train-classifier: see gram_backbones/cli/classifier.py."""

from gram_backbones.cli.classifier import keyword, main, parse_args

__all__ = ["keyword", "main", "parse_args"]

if __name__ == "__main__":
    main()
