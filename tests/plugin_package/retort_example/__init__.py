"""Plugins for Retort, found through their entry points."""
