"""``python -m gram_backbones``: the command line `gram_backbones.cli`."""

from .cli import main


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


if __name__ == "__main__":
    main()
