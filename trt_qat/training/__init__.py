"""FP32 training, QAT and checkpoints."""
