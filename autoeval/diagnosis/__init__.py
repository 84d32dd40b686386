"""What the training run itself says about its health: its log."""
