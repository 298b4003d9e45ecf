"""The TCGA table, dense algebra to check against, and one torch thread: the networks here are too small for more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mki67(real_data: Path) -> pd.DataFrame:
    """ln TPM of MKI67 and the tissue source site of 1,027 slides."""
    # a site called NA would be a site
    table = pd.read_csv(real_data / "tcga_brca" / "mki67_by_slide.csv", dtype=str, keep_default_na=False)
    table = table[(table["MKI67_tpm_unst"] != "") & (table["tss_code"] != "")]
    return table.assign(y=np.log(table["MKI67_tpm_unst"].astype(float)))


class Dense:
    """What the n x n algebra says of given variances."""

    def __init__(self, y, X, zs, ds, s2_e, *, reml=False):
        n, p = X.shape
        Z = np.hstack(zs)
        D = np.zeros((Z.shape[1],) * 2)
        at = 0
        for d in ds:
            D[at : at + len(d), at : at + len(d)] = d
            at += len(d)
        inverse = np.linalg.inv(Z @ D @ Z.T + s2_e * np.eye(n))
        xvx = X.T @ inverse @ X
        self.coef = np.linalg.solve(xvx, X.T @ inverse @ y)
        self.coef_cov = np.linalg.inv(xvx)
        r = y - X @ self.coef
        self.loglik = 0.5 * (np.linalg.slogdet(inverse)[1] - r @ inverse @ r - n * np.log(2 * np.pi))
        if reml:
            self.loglik += 0.5 * (p * np.log(2 * np.pi) - np.linalg.slogdet(xvx)[1])
        self.blup = D @ Z.T @ inverse @ r
        self.blup_cov = D - D @ Z.T @ inverse @ Z @ D


@pytest.fixture(scope="session")
def dense():
    """Return the function that does it the long way."""
    return Dense


def indicator(labels):
    """Return Z of sorted labels."""
    return (np.asarray(labels)[:, None] == np.unique(labels)[None]).astype(float)


@pytest.fixture(scope="session")
def z_of():
    """Return the function that makes an indicator matrix."""
    return indicator
