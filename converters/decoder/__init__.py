"""The GGUF decoder: names, types, quantization and importance matrices."""
