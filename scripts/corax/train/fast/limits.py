"""What the fast layers can take, and how much at a time: known to the plan too, so free of PyTorch."""

FAMILIES = ("llama", "mistral", "phi3", "qwen2")
"""transformers' model types whose decoder layer is the one in layer.py."""
LOSS_ROWS = 2048
"""Rows whose logits exist at a time. Large enough for the products to run at full speed, 0.5 GB for 128,256 tokens."""
