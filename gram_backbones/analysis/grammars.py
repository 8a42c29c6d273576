"""The grammars of models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..aognet import AOGNetVariant
from ..registry import find_variant, list_models

if TYPE_CHECKING:
    from ..grammar import AndOrGraph


def find_aognet(model: str) -> AOGNetVariant:
    """The row of an AOGNet.

    Args:
        model: its name.

    Raises:
        ValueError: there is no such model, or it is no AOGNet.

    Examples:
        >>> find_aognet("aognet_12m").words
        (2, 4, 4, 2)
        >>> find_aognet("dgnet_r50")
        Traceback (most recent call last):
        ValueError: dgnet_r50 has no grammar; allowed are AOGNets: ['aognet_12m', ...
    """
    variant = find_variant(model)
    if not isinstance(variant, AOGNetVariant):
        known = [name for name in list_models() if isinstance(find_variant(name), AOGNetVariant)]
        raise ValueError(f"{model} has no grammar; allowed are AOGNets: {known}")
    return variant


def find_grammar(model: str, stage: int) -> tuple[str, AndOrGraph]:
    """A title and the graph of a stage's blocks.

    Args:
        model: name of an AOGNet.
        stage: from 1, as in the paper; stage 1 gives ``res2``.

    Raises:
        ValueError: see :func:`find_aognet`; or there is no such stage.

    Examples:
        >>> title, graph = find_grammar("aognet_12m", 3)
        >>> title, graph.n_words, graph.pruning
        ('aognet_12m, stage 3', 4, 'keep_first')
    """
    variant = find_aognet(model)
    check_stage(model, len(variant.words), stage)
    return f"{model}, stage {stage}", variant.graph(stage - 1)


def check_stage(model: str, stages: int, stage: int) -> None:
    """Check a stage's number.

    Args:
        model: for the message.
        stages: how many the model has.
        stage: from 1.

    Raises:
        ValueError: there is no such stage.
    """
    if not 1 <= stage <= stages:
        raise ValueError(f"stage is {stage}; {model} has stages 1 to {stages}")
