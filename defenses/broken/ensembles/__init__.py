"""Broken defenses that let several answers vote."""
