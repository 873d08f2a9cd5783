"""Carlini and Wagner's attacks under L2, L0 and L-infinity: arXiv 1608.04644."""

from attacks.carlini_wagner.attack import CarliniWagnerResult, carlini_wagner

__all__ = ["CarliniWagnerResult", "carlini_wagner"]
