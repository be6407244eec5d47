"""One file per calibrator."""
