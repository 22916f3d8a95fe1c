"""The demo world: a small base model, thirteen LoRA adapters, and how they were made."""
