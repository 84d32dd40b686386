"""What is on disk: layouts, completeness, watching, pinning. Imports no torch."""

from autoeval.checkpoints.checkpoint import Checkpoint
from autoeval.checkpoints.copies import copies_in, read_origin, remove_copy
from autoeval.checkpoints.copying import Copying, is_copied, plan_copy
from autoeval.checkpoints.dcp_metadata import (
    DcpMetadata,
    DcpMetadataError,
    StoredItem,
    TensorInfo,
    read_dcp_metadata,
)
from autoeval.checkpoints.layout import detect_format, fingerprint, iteration_of, read_tracker
from autoeval.checkpoints.pin import CheckpointChanged, CheckpointVanished, pin_name, pinned, sweep_pins, unchanged
from autoeval.checkpoints.readiness import Readiness, check
from autoeval.checkpoints.settle import SettleTimes
from autoeval.checkpoints.watch import ScanResult, Watcher

__all__ = [
    "Checkpoint",
    "CheckpointChanged",
    "CheckpointVanished",
    "Copying",
    "DcpMetadata",
    "DcpMetadataError",
    "Readiness",
    "ScanResult",
    "SettleTimes",
    "StoredItem",
    "TensorInfo",
    "Watcher",
    "check",
    "copies_in",
    "detect_format",
    "fingerprint",
    "is_copied",
    "iteration_of",
    "pin_name",
    "pinned",
    "plan_copy",
    "read_dcp_metadata",
    "read_origin",
    "read_tracker",
    "remove_copy",
    "sweep_pins",
    "unchanged",
]
