"""Ray's job client with a deadline on every request; imports Ray, which reads the environment then."""

import logging
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from configs.errors import UserError

CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
REQUEST_S = 60.0  # without an answer; the largest request carries the project's package, some megabytes


class JobClient(JobSubmissionClient):
    """Use `cluster.jobs.connect`. Its calls raise `UserError` when the cluster does not answer or wants a token."""

    def __init__(self, address: str) -> None:
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)  # after their import, which sets it
        super().__init__(address)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=REQUEST_S, **options)
        except OSError as error:  # as every error of the library requests is
            raise UserError(
                f"--address: no Ray cluster answers at {self._address} ({error}); give the address of its dashboard"
            ) from None
        except AuthenticationError as error:
            raise UserError(
                f"--address: the cluster at {self._address} wants its token ({str(error).splitlines()[0]}); set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from None
