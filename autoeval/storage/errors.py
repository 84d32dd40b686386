"""One message for each thing that can be wrong between here and a store, whatever its library makes of it."""

from __future__ import annotations

import asyncio
import errno
import socket

from autoeval.causes import causes
from autoeval.storage.options import HOW_TO_SIGN_IN


class StorageError(Exception):
    """The store could not be asked, or did not answer with what was asked for. The message has no secret in it.

    ``lasting`` tells that waiting alone will not mend it: a name, a right or a package is missing.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


# By S3's error code: what to say, and whether it lasts. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_DENIED = "access is denied: these credentials may not list or read it (s3:ListBucket, s3:GetObject)"
_BY_CODE: dict[str, tuple[str, bool]] = {
    "NoSuchBucket": ("there is no such bucket", True),
    "InvalidBucketName": ("this is no name of a bucket", True),
    "AccessDenied": (_DENIED, True),
    "AllAccessDisabled": (_DENIED, True),
    "403": (_DENIED, True),
    "InvalidAccessKeyId": ("the store does not know this access key", True),
    "SignatureDoesNotMatch": ("the secret key does not belong to this access key", True),
    "ExpiredToken": ("the session token has expired: sign in again", True),
    "InvalidToken": ("the session token is not valid: sign in again", True),
    "TokenRefreshRequired": ("the session token has expired: sign in again", True),
    "RequestTimeTooSkewed": ("the clock of this machine differs from the store's by more than it allows", True),
    "AuthorizationHeaderMalformed": ("the bucket is in another region: set AWS_DEFAULT_REGION", True),
    "PermanentRedirect": ("the bucket is in another region: set AWS_DEFAULT_REGION", True),
    "301": ("the bucket is in another region: set AWS_DEFAULT_REGION", True),
    "InvalidObjectState": ("the object is archived (Glacier): restore it first", True),
    "SlowDown": ("the store asks for fewer requests (SlowDown)", False),
    "RequestLimitExceeded": ("the store asks for fewer requests", False),
    "Throttling": ("the store asks for fewer requests", False),
    "ThrottlingException": ("the store asks for fewer requests", False),
    "503": ("the store asks for fewer requests, or is not available (503)", False),
    "ServiceUnavailable": ("the store is not available (503)", False),
    "InternalError": ("the store has an error of its own (500)", False),
    "500": ("the store has an error of its own (500)", False),
    "RequestTimeout": ("the store broke off a connection that was idle", False),
}
# By the name of a class of botocore, aiohttp or google's library, so that none of them is imported to ask.
_BY_CLASS: dict[str, tuple[str, bool]] = {
    "NoCredentialsError": (f"no credentials were found: {HOW_TO_SIGN_IN}", True),
    "PartialCredentialsError": (f"only a part of the credentials was found: {HOW_TO_SIGN_IN}", True),
    "ProfileNotFound": ("there is no such profile in ~/.aws (AWS_PROFILE, storage_options.profile)", True),
    "CredentialRetrievalError": ("the credentials could not be fetched", False),
    "TokenRetrievalError": ("the sign-in has expired: sign in again (aws sso login)", True),
    "SSOTokenLoadError": ("the sign-in has expired: sign in again (aws sso login)", True),
    "UnauthorizedSSOTokenError": ("the sign-in has expired: sign in again (aws sso login)", True),
    "DefaultCredentialsError": ("no credentials were found", True),
    "InvalidRegionError": ("AWS_DEFAULT_REGION is no region's name", True),
    "ParamValidationError": ("this is no name of a bucket", True),
    "SSLError": ("the store's certificate cannot be verified (AWS_CA_BUNDLE)", True),
    "ClientConnectorCertificateError": ("the store's certificate cannot be verified (AWS_CA_BUNDLE)", True),
    "EndpointConnectionError": ("the endpoint cannot be reached", False),
    "ClientConnectorError": ("the endpoint cannot be reached", False),
    "ConnectTimeoutError": ("the endpoint cannot be reached", False),
    "ConnectionClosedError": ("the endpoint closed the connection", False),
    "ClientPayloadError": ("the endpoint closed the connection", False),
    "IncompleteRead": ("the endpoint closed the connection", False),
    "ServerDisconnectedError": ("the endpoint closed the connection", False),
    "ReadTimeoutError": ("the endpoint does not answer", False),
    "ProxyConnectionError": ("the proxy cannot be reached", False),
}
_UNREACHABLE = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE}


def explain(url: str, error: BaseException) -> StorageError:
    """What went wrong with ``url``, in one line."""
    chain = list(causes(error))
    for cause in chain:
        if (code := error_code(cause)) in _BY_CODE:
            message, lasting = _BY_CODE[code]
            return StorageError(f"{url}: {message}", lasting=lasting)
    for cause in chain:
        for kind in type(cause).__mro__:
            if kind.__name__ in _BY_CLASS:
                message, lasting = _BY_CLASS[kind.__name__]
                return StorageError(f"{url}: {message}{_endpoint(cause)}", lasting=lasting)
    for cause in chain:
        if isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause):
            option = str(cause).rpartition("argument ")[2]
            return StorageError(f"{url}: storage_options: its library knows no option {option}", lasting=True)
        if isinstance(cause, ValueError) and "Protocol not known" in str(cause):
            return StorageError(f"{url}: fsspec knows no such kind of store", lasting=True)
        if isinstance(cause, ImportError):
            return StorageError(f"{url}: {cause}", lasting=True)
        if isinstance(cause, PermissionError):
            return StorageError(f"{url}: {_DENIED}", lasting=True)
        if isinstance(cause, TimeoutError | socket.timeout | asyncio.TimeoutError):
            return StorageError(f"{url}: the endpoint does not answer")
        if isinstance(cause, OSError) and cause.errno in _UNREACHABLE:
            return StorageError(f"{url}: the endpoint cannot be reached")
    # Libraries put requests into their messages, and requests have signatures: the class and the code must do.
    code = next((code for cause in chain if (code := error_code(cause))), "")
    return StorageError(f"{url}: {type(error).__name__}{f' ({code})' if code else ''}")


def error_code(error: BaseException) -> str | None:
    """The code in an answer of S3 (botocore's ``ClientError``), ``None`` when it is none."""
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, dict) else None
    code = details.get("Code") if isinstance(details, dict) else None
    return str(code) if code else None


def says_no_bucket(error: BaseException) -> bool:
    return any(error_code(cause) == "NoSuchBucket" for cause in causes(error))


def _endpoint(error: BaseException) -> str:
    address = getattr(error, "kwargs", {}).get("endpoint_url")
    return f" ({address.split('?')[0]})" if isinstance(address, str) and "@" not in address else ""
