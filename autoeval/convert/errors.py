"""What this room raises."""


class ConversionError(ValueError):
    """The checkpoint cannot be converted, or its conversion did not pass its checks; the message says where and why."""
