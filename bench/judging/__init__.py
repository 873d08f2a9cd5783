"""Verdicts on models that others trained: from files and words, or from modules in memory."""
