"""Facts about this machine: processor, memory, NVIDIA's driver; and advice where a GPU is not used."""
