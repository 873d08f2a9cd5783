"""The Jacobian-based saliency map attack: Papernot et al. 2016, arXiv 1511.07528."""

from attacks.jsma.attack import JSMAResult, StopReason, jsma

__all__ = ["JSMAResult", "StopReason", "jsma"]
