"""The recorder: what was measured (ledger) and everything that shows it. Imports nothing of ``autoeval``."""
