"""What an object store's refusal means: one clear line, without a word of what the server or the client said.

Answers of S3 repeat access key ids and signed strings, and obstore's messages repeat the answers. So nothing of them
is ever shown: an error is told by the code or the status that was found in it, and the original is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>|\(code: ([A-Za-z]{1,60})\)")
_STATUS = re.compile(r"non-2xx status code: (\d{3})|\bstatus: (\d{3})\b|\(code: (\d{3})\)")
_NO_KEYS = re.compile(
    r"Error performing (?:token request: Error performing )?[A-Z]+ https?://(169\.254\.|metadata\.google\.)"
)
"""Without credentials in the environment a client asks its cloud for some; elsewhere nobody answers that."""
_TOKEN = "Error performing token request"
"""What a client says where another server, which makes tokens of credentials, gave it none."""

_PASSING_STATUS = frozenset({"408", "409", "425", "429", "500", "502", "503", "504"})
_PASSING_CODE = frozenset(
    {
        "RequestTimeout",
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "ConditionalRequestConflict",
        "OperationAborted",
        "IncompleteBody",
        "BadDigest",
        "ServerBusy",
        "OperationTimedOut",
    }
)

_REGION = "the bucket is in another region, or its endpoint is another one; set AWS_REGION (and AWS_ENDPOINT_URL)"
_KEYS = "the credentials are not accepted; check the keys or the token in the environment"
_DENIED = "permission denied; the credentials may read here at most, or not even that"
_BARRED = (
    "the credentials are not accepted, or have ended, or the account's network rules keep this machine out; check them"
)
_EXPIRED = "the credentials have expired; get new ones and run the same command again"
_BUCKET = "there is no such bucket; check its name, the endpoint and the region"

_ADVICE = {
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": _BUCKET,
    "ContainerNotFound": _BUCKET,
    "InvalidResourceName": _BUCKET,
    "ResourceNotFound": _BUCKET,
    "ContainerBeingDeleted": _BUCKET,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "AuthenticationFailed": _KEYS,
    "InvalidAuthenticationInfo": _KEYS,
    "NoAuthenticationInformation": _KEYS,
    "PublicAccessNotPermitted": _KEYS,
    "AuthorizationFailure": _BARRED,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": "this machine's clock and the server's differ by more than minutes; set the clock",
    "RequestExpired": "this machine's clock and the server's differ by more than minutes; set the clock",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AuthorizationPermissionMismatch": _DENIED,
    "BlobImmutableDueToPolicy": _DENIED,
    "QuotaExceeded": "the bucket's quota is used up; free some space and run the same command again",
    "NotImplemented": "the server does not know this operation (put-if-absent?); use another one",
}
_BY_STATUS = {"301": _REGION, "307": _REGION, "401": _KEYS, "403": _DENIED, "507": _ADVICE["QuotaExceeded"]}


@dataclass(frozen=True, slots=True)
class Fault:
    """One refusal, told apart."""

    what: str
    """A code or status to show; never text of the server's choosing."""
    advice: str
    passing: bool
    """Whether the same request may succeed when it is sent again."""
    absent: bool = False
    """There is no such object."""
    exists: bool = False
    """There is one already, or someone is making it now."""
    past_end: bool = False
    """A range that begins behind the object's end."""


def fault_of(error: Exception) -> Fault:
    """Tell what an exception of obstore means."""
    text, kind = str(error).partition("\n\nDebug source:")[0], type(error).__name__
    found = _CODE.search(text)
    code = (found[1] or found[2]) if found else ""
    number = _STATUS.search(text)
    status = next(filter(None, number.groups())) if number else ""
    what = code or (f"status {status}" if status else "")
    if kind == "AlreadyExistsError" and code not in _ADVICE:  # obstore's word for each 409 of Azure
        return Fault(what, "", passing=status == "409" and code != "BlobAlreadyExists", exists=True)
    if _NO_KEYS.search(text):
        advice = (
            "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for gs:// "
            "GOOGLE_APPLICATION_CREDENTIALS, or for az:// AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
        )
        return Fault("no credentials", advice, passing=False)
    if _TOKEN in text and status not in _PASSING_STATUS:
        return Fault(what or "no token", _KEYS, passing=False)
    if code == "InvalidRange" or status == "416":
        return Fault(what, "", passing=False, past_end=True)
    if code in _ADVICE:
        return Fault(what, _ADVICE[code], passing=False)
    if isinstance(error, FileNotFoundError) or code in ("NoSuchKey", "BlobNotFound"):
        return Fault(what or "not found", "", passing=False, absent=True)
    if code in _PASSING_CODE or status in _PASSING_STATUS:
        return Fault(what, "the server is busy or ill; run the same command again later", passing=True)
    if status in _BY_STATUS or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return Fault(what or "refused", _BY_STATUS.get(status, _DENIED), passing=False)
    return _without_answer(text, what)


def _without_answer(text: str, what: str) -> Fault:
    """Tell the failures in which no server said anything that we know."""
    if "redirect without LOCATION" in text:
        return Fault("redirected", _REGION, passing=False)
    if text.rstrip().endswith("HTTP error: builder error"):
        advice = (
            "the endpoint cannot be used; check AWS_ENDPOINT_URL (plain http needs AWS_ALLOW_HTTP=true; so for gs, az)"
        )
        return Fault("endpoint", advice, passing=False)
    if what:
        return Fault(what, "the server refused the request", passing=False)
    return Fault("no answer", "the server does not answer; check the endpoint and the network", passing=True)
