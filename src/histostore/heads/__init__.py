"""Heads: estimators on cached embeddings, and the protocol that trains, chooses and scores them.

``ridge``, ``reduced_rank``, ``pls``, ``pca_ridge``, ``mlp``, ``attention``, ``knn`` and ``baselines`` are estimators,
``decoded`` is one of them around a decoder (``nmf``, ``decoders``, ``autoencoder``), ``mixed`` has those with random
effects, ``classifier`` and ``mlp_classifier`` tell classes; ``registry`` finds one by name; ``targets``, ``panels``,
``labels``, ``features`` and ``splits`` say what is predicted, from what and on which rows; ``metrics``, ``evaluate``,
``class_metrics``, ``label_evaluation`` and ``significance`` say how well; ``rows``, ``gram`` and ``shared_sums`` let
embeddings be larger than memory; ``fitted`` is what is kept.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.heads.attention import AttentionPool
    from histostore.heads.autoencoder import Autoencoder
    from histostore.heads.baselines import PositionKNN, TrainingMean
    from histostore.heads.classifier import Logistic
    from histostore.heads.decoded import Decoded
    from histostore.heads.decoders import PCA
    from histostore.heads.knn import KNN
    from histostore.heads.mixed.renn import RENN
    from histostore.heads.mlp import MLP
    from histostore.heads.mlp_classifier import MLPClassifier
    from histostore.heads.nmf import NMF
    from histostore.heads.pca_ridge import PCARidge
    from histostore.heads.pls import PLS
    from histostore.heads.reduced_rank import ReducedRankRidge
    from histostore.heads.ridge import Ridge

__all__ = [
    "KNN",
    "MLP",
    "NMF",
    "PCA",
    "PLS",
    "RENN",
    "AttentionPool",
    "Autoencoder",
    "Decoded",
    "Logistic",
    "MLPClassifier",
    "PCARidge",
    "PositionKNN",
    "ReducedRankRidge",
    "Ridge",
    "TrainingMean",
]

_HOME = {
    "AttentionPool": "attention",
    "Autoencoder": "autoencoder",
    "Decoded": "decoded",
    "KNN": "knn",
    "Logistic": "classifier",
    "MLP": "mlp",
    "MLPClassifier": "mlp_classifier",
    "NMF": "nmf",
    "PCA": "decoders",
    "PCARidge": "pca_ridge",
    "PLS": "pls",
    "PositionKNN": "baselines",
    "RENN": "mixed.renn",
    "ReducedRankRidge": "reduced_rank",
    "Ridge": "ridge",
    "TrainingMean": "baselines",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
