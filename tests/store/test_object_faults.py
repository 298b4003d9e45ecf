"""What an object store refuses is told apart, and of its words nothing is repeated."""

from __future__ import annotations

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError

from histostore.store.object_faults import fault_of

SECRET = "AKIAHUNTER2"
SAID = "Error performing GET http://host/bucket/metadata/credentials/x in 1ms - "
TOKEN = "Error performing token request: Error performing "


def answer(status: str, code: str = "") -> str:
    body = f"<Error><Code>{code}</Code><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>" if code else SECRET
    return f"Generic S3 error: {SAID}Server returned non-2xx status code: {status}: {body}\n\nDebug source:\n{SECRET}"


CASES: dict[str, tuple[Exception, str, bool]] = {
    "slow down": (GenericError(answer("503 Service Unavailable", "SlowDown")), "busy", True),
    "internal": (GenericError(answer("500 Internal Server Error")), "busy", True),
    "too many": (GenericError(answer("429 Too Many Requests")), "busy", True),
    "cut": (GenericError(f"Generic S3 error: {SAID}HTTP error: error decoding response body"), "not answer", True),
    "timeout": (
        GenericError(f"Generic S3 error: {SAID}HTTP error: request or response body error"),
        "not answer",
        True,
    ),
    "region": (GenericError("Generic S3 error: Received redirect without LOCATION, this normally …"), "region", False),
    "signed region": (GenericError(answer("400 Bad Request", "AuthorizationHeaderMalformed")), "region", False),
    "clock": (PermissionDeniedError(answer("403 Forbidden", "RequestTimeTooSkewed")), "clock", False),
    "keys": (PermissionDeniedError(answer("403 Forbidden", "InvalidAccessKeyId")), "not accepted", False),
    "denied": (PermissionDeniedError(answer("403 Forbidden", "AccessDenied")), "permission denied", False),
    "denied to delete": (
        GenericError("Generic S3 error: DeleteObjects request failed for key x: No. (code: AccessDenied)"),
        "permission denied",
        False,
    ),
    "no keys": (
        GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - x"),
        "no credentials",
        False,
    ),
    "no keys for gs": (
        GenericError(f"Generic GCS error: {TOKEN}GET http://169.254.169.254/computeMetadata/v1/x in 1ms - HTTP error"),
        "GOOGLE_APPLICATION_CREDENTIALS",
        False,
    ),
    "keys that give no token": (
        GenericError(
            f"Generic GCS error: {TOKEN}POST https://oauth2/token in 1ms - non-2xx status code: 400: {SECRET}"
        ),
        "not accepted",
        False,
    ),
    "tokens are not to be had now": (
        GenericError(
            f"Generic GCS error: {TOKEN}POST https://oauth2/token in 1ms - non-2xx status code: 503: {SECRET}"
        ),
        "busy",
        True,
    ),
    "denied to delete in Azure": (
        GenericError("Generic MicrosoftAzure error: Bulk delete request failed for key x: No. (code: 403)\n"),
        "permission denied",
        False,
    ),
    "anonymous in Azure": (
        AlreadyExistsError(answer("409 Conflict", "PublicAccessNotPermitted")),
        "not accepted",
        False,
    ),
    "bucket": (FileNotFoundError(answer("404 Not Found", "NoSuchBucket")), "no such bucket", False),
    "plain http": (GenericError(f"Generic S3 error: {SAID}HTTP error: builder error"), "AWS_ALLOW_HTTP", False),
    "unknown": (GenericError(answer("418 Teapot", "IAmATeapot")), "refused", False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_told_by_its_kind_and_without_what_was_said(name: str) -> None:
    error, advice, passing = CASES[name]
    fault = fault_of(error)
    assert advice in f"{fault.advice} {fault.what}"
    assert fault.passing == passing
    assert not fault.absent
    assert SECRET not in repr(fault)


def test_absent_taken_and_past_the_end_are_no_refusals() -> None:
    assert fault_of(FileNotFoundError(answer("404 Not Found", "NoSuchKey"))).absent
    assert fault_of(FileNotFoundError(answer("404 Not Found"))).absent
    taken = fault_of(AlreadyExistsError(answer("412 Precondition Failed", "PreconditionFailed")))
    assert (taken.exists, taken.passing) == (True, False)
    going_on = fault_of(AlreadyExistsError(answer("409 Conflict", "ConditionalRequestConflict")))
    assert (going_on.exists, going_on.passing) == (True, True)
    there = fault_of(AlreadyExistsError(answer("409 Conflict", "BlobAlreadyExists")))  # asking again is of no use
    assert (there.exists, there.passing) == (True, False)
    assert fault_of(FileNotFoundError("Bulk delete request failed for key x: not there. (code: 404)")).absent
    assert fault_of(GenericError(answer("416 Range Not Satisfiable", "InvalidRange"))).past_end
