"""The index of data sets, and those that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.plugins.contracts import DataSettings, DataSource
from bench.plugins.data import Dataset, assemble

INDEX = {
    "digits": "bench.training.datasets:Digits",
    "mnist": "bench.training.downloads:Mnist",
    "fashion-mnist": "bench.training.downloads:FashionMnist",
    "cifar10": "bench.training.downloads:Cifar10",
    "cifar100": "bench.training.downloads:Cifar100",
    "svhn": "bench.training.downloads:Svhn",
    "breast-cancer": "bench.training.datasets:BreastCancer",
    "arrays": "bench.handed.arrays:Arrays",
    "image-folder": "bench.handed.images:ImageFolder",
}


@dataclass(frozen=True)
class Digits(DataSource):
    """1,797 real handwritten digits, 8 × 8 grey, 10 classes, inside scikit-learn.

    UCI ML hand-written digits, test set (Alpaydin and Kaynak 1998). 1,347 train, 150 validation,
    300 test, after one fixed shuffle.
    """

    network: ClassVar[str] = "digits-cnn"
    recipe: ClassVar[str] = "digits"

    def load(self, settings: DataSettings) -> Dataset:
        """Load from scikit-learn's own files; nothing is fetched."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        order = np.random.RandomState(0).permutation(len(raw.target))
        x = (raw.images[order] / 16).astype(np.float32)[:, None]
        y = raw.target[order]
        return assemble("digits", (x[:-300], y[:-300]), (x[-300:], y[-300:]), validation=150)


@dataclass(frozen=True)
class BreastCancer(DataSource):
    """569 rows of 30 measurements, benign or malignant, inside scikit-learn: flat features.

    Wisconsin Diagnostic Breast Cancer (Street, Wolberg, Mangasarian 1993). Scaled to [0, 1] by the
    range of the training rows; ``binary`` asks of each feature only whether it is above the
    training median, as the features of malware are there or not. 359 train, 60 validation,
    150 test, after one fixed shuffle.
    """

    binary: bool = False

    def load(self, settings: DataSettings) -> Dataset:
        """Load from scikit-learn's own files; nothing is fetched."""
        from sklearn.datasets import load_breast_cancer

        raw = load_breast_cancer()
        order = np.random.RandomState(0).permutation(len(raw.target))
        x, y = raw.data[order], raw.target[order]
        learn = x[:-210]  # neither validation nor test has a say in the scale
        if self.binary:
            x = (x > np.median(learn, axis=0)).astype(np.float32)
        else:
            low, high = learn.min(axis=0), learn.max(axis=0)
            x = np.clip((x - low) / (high - low), 0, 1).astype(np.float32)
        name = "breast-cancer-binary" if self.binary else "breast-cancer"
        return assemble(name, (x[:-150], y[:-150]), (x[-150:], y[-150:]), validation=60)
