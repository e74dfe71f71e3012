"""Base models, adapters, the wide gated LoRA, and the routers over experts."""
