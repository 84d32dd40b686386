"""What a store says, and what is said when it cannot be asked: one clear message each, no secret in any."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from autoeval.storage import ObjectStore, StorageError, check_options
from autoeval.storage import store as store_module
from autoeval.storage.errors import explain
from tests.storage.conftest import Bucket
from tests.storage.stores import SECRET_KEY, Server, free_port


def test_listings_are_never_from_a_cache(bucket: Bucket) -> None:
    store = ObjectStore(bucket.url("run"))
    assert store.children() == ({}, [])
    bucket.put("run/iter_0000002/a", b"1234")
    bucket.put("run/latest", b"2")
    bucket.put("runner/other", b"not below run/")
    objects, folders = store.children()
    assert (list(objects), folders) == (["latest"], ["iter_0000002"])
    assert {name: one.size for name, one in store.objects().items()} == {"latest": 1, "iter_0000002/a": 4}
    before = store.object("latest")
    bucket.put("run/latest", b"4")
    assert store.object("latest").etag != before.etag
    assert (store.read("latest"), store.read("iter_0000002/a", 1, 3)) == (b"4", b"23")
    with store.open(store.objects()["iter_0000002/a"]) as stream:
        stream.seek(-2, 2)
        assert stream.read() == b"34"
    bucket.delete("run/latest")
    with pytest.raises(FileNotFoundError, match=r"run/latest is not there"):
        store.object("latest")


def test_an_upload_in_parts_is_not_seen_before_its_end(bucket: Bucket) -> None:
    store = ObjectStore(bucket.url("run"))
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="run/big")
    part = {"Bucket": bucket.name, "Key": "run/big", "UploadId": begun["UploadId"], "PartNumber": 1}
    sent = bucket.client.upload_part(**part, Body=b"x" * (5 << 20))
    assert store.objects() == {}
    parts = {"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]}
    bucket.client.complete_multipart_upload(
        Bucket=bucket.name, Key="run/big", UploadId=begun["UploadId"], MultipartUpload=parts
    )
    assert store.objects()["big"].size == 5 << 20
    assert store.objects()["big"].md5 is None  # the ETag of parts is no MD5


def _trouble(url: str, options: dict[str, Any] | None = None) -> tuple[str, bool]:
    with pytest.raises(StorageError) as raised:
        ObjectStore(url, options).children()
    assert SECRET_KEY not in str(raised.value)
    return str(raised.value), raised.value.lasting


def test_each_trouble_has_its_message(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _trouble("s3://no-such-bucket/run") == ("s3://no-such-bucket/run: there is no such bucket", True)
    message, lasting = _trouble("s3://b/run", {"endpoint_url": f"http://127.0.0.1:{free_port()}"})
    assert "the endpoint cannot be reached (http://127.0.0.1:" in message and not lasting
    message, lasting = _trouble("s3://b/run", {"profile": "nobody"})
    assert "no such profile" in message and lasting
    message, lasting = _trouble("s3://b/run", {"endpiont_url": "x"})
    assert "its library knows no option 'endpiont_url'" in message and lasting
    message, lasting = _trouble("ess3://b/run")
    assert "fsspec knows no such kind of store" in message and lasting
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "only a part of the credentials was found" in _trouble("s3://b/run")[0]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials were found" in _trouble("s3://b/run")[0]


@pytest.mark.parametrize(
    ("code", "said", "lasting"),
    [
        ("AccessDenied", "access is denied", True),
        ("InvalidAccessKeyId", "does not know this access key", True),
        ("SignatureDoesNotMatch", "secret key does not belong", True),
        ("ExpiredToken", "has expired", True),
        ("RequestTimeTooSkewed", "clock of this machine differs", True),
        ("PermanentRedirect", "another region", True),
        ("SlowDown", "fewer requests", False),
        ("InternalError", "error of its own", False),
        ("SomethingNew", "OSError (SomethingNew)", False),
    ],
)
def test_what_s3_answers_is_said_in_words(code: str, said: str, lasting: bool) -> None:
    """As s3fs hands it on: botocore's error, translated, with the answer as its cause."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer = {"Error": {"Code": code, "Message": f"signed with {SECRET_KEY}"}, "ResponseMetadata": {}}
    error = explain("s3://b/run", translate_boto_error(ClientError(answer, "ListObjectsV2")))
    assert said in str(error) and error.lasting is lasting
    assert SECRET_KEY not in str(error)


def test_a_server_that_hangs_is_given_up(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "READ_SECONDS", 1)
    assert bucket.server.process is not None
    bucket.server.process.send_signal(signal.SIGSTOP)
    try:
        message, lasting = _trouble(bucket.url("run"))
    finally:
        bucket.server.process.send_signal(signal.SIGCONT)
    assert "the endpoint does not answer" in message and not lasting


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA"},
        {"secret": SECRET_KEY},
        {"client_kwargs": {"aws_secret_access_key": SECRET_KEY}},
        {"client_kwargs": {"aws_session_token": SECRET_KEY}},
        {"account_key": SECRET_KEY},
        {"connection_string": SECRET_KEY},
        {"endpoint_url": f"https://user:{SECRET_KEY}@minio"},
    ],
)
def test_options_with_secrets_are_refused_and_not_repeated(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="environment") as raised:
        check_options(options)
    assert SECRET_KEY not in str(raised.value)


def test_options_without_secrets_pass(server: Server) -> None:
    options = {"endpoint_url": server.endpoint, "profile": "p", "anon": True, "client_kwargs": {"region_name": "r"}}
    assert check_options(options) == options


@pytest.mark.parametrize(
    "url", ["s3://user:pass@bucket/x", "s3:///x", "s3://bucket/a/../b", "s3://bucket/x?versionId=1"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the URL") as raised:
        ObjectStore(url)
    assert "pass@" not in str(raised.value)


def test_names_that_would_leave_a_directory_are_not_seen() -> None:
    from autoeval.storage.store import _relative

    assert _relative("b/run/a/b", "b/run") == "a/b"
    for path in ("b/run/../x", "b/run/a//b", "b/runner/x", "b/run/", "b/run/a\\..\\b", "b/run/./x"):
        assert _relative(path, "b/run") is None
