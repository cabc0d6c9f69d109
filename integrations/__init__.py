"""Adapters: one framework a file, each a thin layer around one Monitor."""
