"""Files that are not on a disk here: object stores through fsspec (``s3://``, ``gs://``, ``memory://``).

Nothing heavy is imported before the first URL is opened. Credentials are found by the store's own library, in the
environment or a profile file; they never pass through here.
"""

from autoeval.storage.errors import StorageError
from autoeval.storage.options import check_options, is_url, join
from autoeval.storage.store import ObjectStore, StoredObject
from autoeval.storage.transfer import Aborted, Changed, Transfer, Vanished, Wanted

__all__ = [
    "Aborted",
    "Changed",
    "ObjectStore",
    "StorageError",
    "StoredObject",
    "Transfer",
    "Vanished",
    "Wanted",
    "check_options",
    "is_url",
    "join",
]
