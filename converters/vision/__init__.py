"""The ONNX image encoder: graph, weights and file."""
