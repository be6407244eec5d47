"""Datasets: reading, checking, converting, and the generated demo set."""
