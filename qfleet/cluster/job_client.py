"""Ray's client of a job server, with deadlines and a line for each way in which a server may refuse it."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
import requests
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from qfleet.cluster.faults import first_line, last_line
from rl.errors import BadInput, RunFault

REQUEST_TIMEOUT = 15.0  # seconds for a request; Ray's own client waits for ever
UPLOAD_TIMEOUT = 900.0  # seconds for a PUT: an upload, of which a socket's timeout limits the whole sending
# Modules of Ray that log which files are uploaded.
NOISY = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
    "_private.runtime_env.working_dir",
)


class NoJobServer(RunFault):
    """The job server does not answer."""


class Client(JobSubmissionClient):
    """Ray's client with a deadline for each request, and this machine's token."""

    @classmethod
    def connect(cls, url: str, where: str) -> Client:
        """Connect to the server at ``url``. Raises NoJobServer if none answers; BadInput if it refuses this client."""
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would go there instead of to `url`
            os.environ.pop(name, None)
        for module in NOISY:
            logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
        token = AuthenticationTokenLoader.instance()
        has_token = token.has_token(ignore_auth_mode=True)
        try:
            client = cls(url, headers=dict(token.get_token_for_http_header()) if has_token else {})
        except AuthenticationError as error:
            wanted = "copy ~/.ray/auth_token of the head node to the same path here"
            says = (
                "rejects Ray's token of this machine" if has_token else "asks for Ray's token, and there is none here"
            )
            raise BadInput(f"{where} {says}: {wanted}") from error
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # ValueError: the answer is no JSON
            raise BadInput(f"{where} is no job server of Ray ({first_line(error)}): write the URL of one") from error
        except (requests.RequestException, OSError) as error:
            raise NoJobServer(last_line(error)) from error
        if client._server_ray_version != ray.__version__:
            raise BadInput(
                f"{where} runs Ray {client._server_ray_version}, and here is Ray {ray.__version__}: install the same version"
            )
        return client

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        timeout = UPLOAD_TIMEOUT if method == "PUT" else REQUEST_TIMEOUT
        return super()._do_request(method, endpoint, **{"timeout": timeout, **kwargs})
