"""Images and videos without labels: named, sampled by content, labelled by the FP32 model, an ordinary dataset."""
