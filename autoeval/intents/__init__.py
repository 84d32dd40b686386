"""Questions that are alike although their intents differ, and intents that mean the same."""
