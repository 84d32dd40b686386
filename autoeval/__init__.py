"""autoeval: evaluate every checkpoint of a Megatron pre-training run while it trains."""

__version__ = "0.1.0"
