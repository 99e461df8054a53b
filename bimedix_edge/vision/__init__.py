"""The image encoder: an ONNX graph, what computes it, and kernels of our own."""
