"""Fine-tuning the encoder: its inputs, and its adapters."""
