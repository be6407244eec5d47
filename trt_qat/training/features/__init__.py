"""One file per idea of QAT."""
