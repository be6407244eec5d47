"""FP32 training and QAT."""
