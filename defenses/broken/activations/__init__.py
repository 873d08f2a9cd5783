"""Broken defenses that change what happens inside the network, or how smooth it is."""
