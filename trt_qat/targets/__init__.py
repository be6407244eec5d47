"""One file per client that an exported file is for."""
