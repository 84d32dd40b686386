"""No network on the evaluation path: how libraries are kept from it, and the proof that nothing needs it."""
