"""The APIs of an OpenStack cloud by openstacksdk: counted, retried where that is safe, errors as ours.

Two layers, each for what it can know. The transport repeats what may be repeated blindly (a request that changes
nothing or ends in the same state) and what was refused unseen (429). Whoever creates something says how it would be
found: after a request whose fate is unknown it is looked for, never created blindly a second time.
"""

from __future__ import annotations

import email.utils
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import keystoneauth1.exceptions as auth_errors
import openstack.exceptions as sdk_errors
import requests
import yaml
from openstack.config import OpenStackConfig
from openstack.connection import Connection
from requests.adapters import HTTPAdapter

from harness import yamlfile
from harness.cloud import options
from harness.cloud.options import CloudOptions
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError, Fault, Unreachable
from harness.run import held
from harness.settings import Settings

PATIENCE = 60.0
"""Seconds for which a request is repeated."""
_ABSENT = 10.0
"""Seconds for which that is done where nobody listens at all: a service that restarts, or a cloud that is gone."""
_TIMEOUT = (10.0, 90.0)
"""Seconds to connect, and between two octets of an answer."""
_SETTLE = (0.0, 2.0, 5.0)
"""Seconds after which something is looked for whose creation ended with an unknown fate."""
_REPEAT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_BUSY = frozenset({429, 502, 503, 504})

T = TypeVar("T")


class QuotaExceeded(CloudError):
    """The project may not have more of something."""


class Refused(CloudError):
    """An API answered with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int, *, hint: str | None = None, fault: Fault | None = None) -> None:
        super().__init__(message, hint=hint, fault=fault)
        self.status = status


class _Transport(HTTPAdapter):
    """Counts requests by method and service, and repeats those that may be repeated."""

    def __init__(self, counts: Counter[str], lock: threading.Lock) -> None:
        super().__init__(pool_connections=16, pool_maxsize=16)
        self._counts, self._lock = counts, lock

    def send(self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None,
             verify: Any = True, cert: Any = None, proxies: Any = None) -> requests.Response:
        limit = Deadline(PATIENCE)
        delay = 0.5
        while True:
            with self._lock:
                self._counts[str(request.method)] += 1
            try:
                response = super().send(request, stream, timeout or _TIMEOUT, verify, cert, proxies)
            except (requests.ConnectionError, requests.Timeout) as error:
                nobody = isinstance(error, requests.ConnectionError) and "NewConnectionError" in str(error)
                # A connection that was never made carried no request: that may be tried again whatever it was.
                patience = limit.remaining - (PATIENCE - _ABSENT if nobody else 0.0)
                if not (nobody or _repeatable(request)) or patience < delay:
                    raise
                wait = delay
            else:
                refused_unseen = response.status_code == 429
                if response.status_code not in _BUSY or not (_repeatable(request) or refused_unseen):
                    return response
                wait = retry_after(response.headers) or delay
                if limit.remaining < wait:
                    return response
                response.close()
            time.sleep(wait)
            delay = min(delay * 2, 8.0)


def _repeatable(request: requests.PreparedRequest) -> bool:
    """Whether sending the request twice ends like sending it once; a body that was streamed is gone."""
    if request.method in _REPEAT_METHODS:
        return True
    if request.method == "POST":
        return str(request.path_url).endswith("/auth/tokens")
    return request.method == "PUT" and isinstance(request.body, bytes | str | None)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that Retry-After asks for (RFC 9110, 10.2.3: a number or a date); 0 where it asks for none."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def configuration_files(settings: Settings) -> list[str]:
    """Where clouds.yaml may be: OS_CLIENT_CONFIG_FILE, the usual places, and that of this machine's test cloud."""
    named = os.environ.get("OS_CLIENT_CONFIG_FILE")
    usual = [Path.cwd(), Path("~/.config/openstack").expanduser(), Path("/etc/openstack")]
    found = [Path(named)] if named else [place / "clouds.yaml" for place in usual]
    return [os.fspath(path) for path in (*found, settings.cache / "testcloud" / "clouds.yaml")]


def cloud_names(settings: Settings) -> list[str]:
    """The clouds that can be named besides `local`. Raises DescriptionError for a clouds.yaml that is none."""
    return list(dict.fromkeys(name for file in configuration_files(settings) for name in _clouds_of(file)))


class Api:
    """One cloud of clouds.yaml. `sdk` is openstacksdk's connection; what it raises goes through translated()."""

    def __init__(self, name: str, settings: Settings) -> None:
        """Raises DescriptionError where clouds.yaml has no such cloud, or a mistake."""
        self.name = name
        self.counts: Counter[str] = Counter()
        self._testcloud = settings.cache / "testcloud"
        file = next((f for f in configuration_files(settings) if name in _clouds_of(f)), None)
        if file is None:
            looked = ", ".join(os.path.relpath(f) for f in configuration_files(settings))
            raise DescriptionError(f"there is no cloud {name!r}",
                                   hint="known: " + ", ".join(["local", *cloud_names(settings)])
                                   + f"; clouds.yaml was looked for here: {looked}")
        self._file = Path(file)
        secure = os.fspath(self._file.with_name("secure.yaml"))
        for part in (file, secure):
            _look_at(part, name)
        try:
            region = OpenStackConfig(config_files=[file], secure_files=[secure]).get_one(name)
            for key in [k for k in region.config if k.endswith(("connect_retries", "status_code_retries"))]:
                region.config[key] = 0  # the transport's matter, once
            self.sdk = Connection(config=region, app_name="dialtone")
            sending = self.sdk.session
        # openstacksdk takes values as they are: one of another type or form fails wherever it is used first.
        except (sdk_errors.ConfigException, auth_errors.ClientException, AttributeError, TypeError,
                ValueError) as error:
            raise DescriptionError(f"{file}: clouds.{name}: {_sentence(error)}") from None
        self.options: CloudOptions = options.parse(region.config.get("dialtone"), name, os.path.relpath(file))
        self.region = str(region.region_name or "")
        transport = _Transport(self.counts, threading.Lock())
        sending.session = session = requests.Session()
        session.mount("http://", transport)
        session.mount("https://", transport)

    def ready(self) -> None:
        """Raises Unreachable where this is the test cloud of this machine, and it is not up."""
        if self._file.parent == self._testcloud and not held(self._testcloud / "lock"):
            raise Unreachable("the test cloud is not up", hint="./inv testcloud.up")

    def get(self, what: str, action: Callable[[], T]) -> T:
        """Do `action`, which changes nothing or may be done twice; `what` is for people. Raises CloudError."""
        with translated(what, self.name):
            return action()

    def create(self, what: str, find: Callable[[], T | None], action: Callable[[], T], deadline: Deadline) -> T:
        """Create something once: after a request whose fate is unknown it is looked for before the next try.

        Raises CloudError: what the API refused, or the last failure at the deadline.
        """
        while True:
            try:
                with translated(what, self.name):
                    return action()
            except CloudError as error:
                if not _fate_unknown(error):
                    raise
                unknown = error
            for pause in _SETTLE:
                time.sleep(min(pause, deadline.remaining))
                with translated(what, self.name):
                    found = find()
                if found is not None:
                    return found
            if deadline.expired:
                raise unknown


@contextmanager
def translated(what: str, cloud: str) -> Iterator[None]:
    """Turns what openstacksdk raises inside into a CloudError that says what was wanted and what the cloud said."""
    try:
        yield
    except (sdk_errors.SDKException, auth_errors.ClientException, requests.RequestException) as error:
        raise _translate(error, what, cloud) from None


def _translate(error: Exception, what: str, cloud: str) -> CloudError:
    said = _sentence(error)
    status = getattr(error, "status_code", None) or getattr(error, "http_status", None) or 0
    text = f"{cloud}: {what}: {said}"
    if isinstance(error, auth_errors.Unauthorized) or status == 401:
        return Refused(f"{text}", 401, fault=Fault.DESCRIPTION, hint=f"user and password of {cloud} in clouds.yaml")
    # keystoneauth's own error is the login's: "not found" says nothing of the thing that was asked for.
    no_login = isinstance(error, auth_errors.HttpError) and (status == 404 or status >= 500)
    if no_login or isinstance(error, auth_errors.ConnectFailure | auth_errors.DiscoveryFailure
                              | requests.ConnectionError | requests.Timeout):
        return Unreachable(text, hint=f"try it: openstack --os-cloud {cloud} token issue")
    if isinstance(error, auth_errors.MissingAuthPlugin | auth_errors.MissingRequiredOptions):
        return Refused(text, 0, fault=Fault.DESCRIPTION, hint=f"see {cloud} in clouds.yaml")
    if status in (403, 409, 413) and "uota" in said:
        return QuotaExceeded(text, hint="`./inv reap` removes what dead runs left; else ask for more")
    if status == 403:
        return Refused(text, 403, hint="docs/openstack.md names the rights that are needed")
    return Refused(text, int(status))


def _sentence(error: Exception) -> str:
    """What the API said, in one line; never a request's headers or body."""
    said = getattr(error, "details", None) or getattr(error, "message", None) or str(error)
    return " ".join(str(said).split())[:500] or type(error).__name__


def _fate_unknown(error: CloudError) -> bool:
    """Whether the request may have been carried out nevertheless."""
    return isinstance(error, Unreachable) or (isinstance(error, Refused) and error.status in (500, 502, 503, 504))


def _look_at(file: str, name: str) -> None:
    """Raises DescriptionError where the cloud's entry in a file, or the `auth` in it, is no mapping."""
    clouds = _clouds_of(file)
    if name not in clouds:
        return
    entry = clouds[name]
    where = f"{file}: clouds.{name}"
    if not isinstance(entry, dict):
        raise DescriptionError(f"{where}: is no mapping", hint="what belongs to it is indented further than its name")
    if not isinstance(entry.get("auth", {}), dict):
        raise DescriptionError(f"{where}.auth: is no mapping")


def _clouds_of(file: str) -> dict[str, Any]:
    """The entries of a clouds.yaml or secure.yaml by name, as YAML gave them; none where the file is not there."""
    try:
        data = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=yamlfile.Loader)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        # Only where it is wrong: a line of this file may hold a password.
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        said = error.problem if isinstance(error, yamlfile.Unreadable) else "is not YAML"
        raise DescriptionError(f"{file}{where}: {said}") from None
    clouds = data.get("clouds") if isinstance(data, dict) else None
    return {str(name): entry for name, entry in clouds.items()} if isinstance(clouds, dict) else {}
