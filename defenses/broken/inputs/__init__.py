"""Broken defenses that change what the network sees: encode, squeeze, move, project."""
