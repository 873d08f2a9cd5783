"""What code a result depends on, as a hash that comments, docstrings and other code leave alone.

From a class or function, every top-level definition that it mentions is followed, through the
project's own modules and through a plugin's package; libraries are not (their versions are
recorded, not keyed). Each definition counts by its syntax tree without docstrings.
"""

from __future__ import annotations

import hashlib
import json


def digest(document: object) -> str:
    """Return the SHA-256 of a JSON document in canonical form (sorted keys, no spaces)."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
