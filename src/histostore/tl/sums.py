"""Arithmetic over a cohort larger than memory: Gram matrices, principal components, programs of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.cohort.grams import Gram
    from histostore.cohort.nmf import Programs
    from histostore.cohort.pca import Components
    from histostore.view import View


def gram(view: View, backbone: str | None = None, **options: Any) -> Gram:
    """Return Gram matrices of embeddings and genes over all slides of a view, never all in memory, for `heads.Ridge`.

    Options as in `histostore.cohort.grams.gram`: `genes`, `unit`, `by`, `folds`, `client`, `workers`.
    """
    from histostore.cohort.grams import gram as run

    return run(view, backbone, **options)


def pca(view: View, backbone: str | None = None, *, n_comps: int = 50, **options: Any) -> Components:
    """Return the principal components of a view's embeddings, never all in memory.

    Options (`client`, `workers`) as in `histostore.cohort.pca.pca`; scores are ``found.transform(view.lazy())``.
    """
    from histostore.cohort.pca import pca as run

    return run(view, backbone, n_comps=n_comps, **options)


def nmf(view: View, k: int = 10, *, genes: Sequence[str], **options: Any) -> Programs:
    """Return non-negative programs of some genes over all slides of a view, learned minibatch by minibatch.

    Options (`unit`, `passes`, `seed`) as in `histostore.cohort.nmf.nmf`; `factors` takes ``found.decoder``.
    """
    from histostore.cohort.nmf import nmf as run

    return run(view, k, genes=genes, **options)
