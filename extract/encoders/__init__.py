"""Encoders by name: their weights, their forward pass split between two blocks, and LoRA adapters."""
