"""lm-evaluation-harness on local task files: what they may say, and base against tuned model on them."""
