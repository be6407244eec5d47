"""Datasets: reading, checking, converting."""
