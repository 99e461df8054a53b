"""Published BiMediX2 checkpoints to bundles; needs neither torch nor transformers."""
