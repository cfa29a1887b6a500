"""The end of a replica whose engine is dead: that of its process.

An actor that stayed up and raised would be kept for three health checks, and draw calls to it meanwhile, as its queue
is the shortest. An actor that is gone is gone for everybody at once: Serve starts another, and its callers see a lost
replica.
"""

import logging
import os
from typing import NoReturn

logger = logging.getLogger(__name__)

ENGINE_DIED = 70  # exit status, EX_SOFTWARE of sysexits.h


def end_replica(why: BaseException) -> NoReturn:
    """End this process without another word to anybody but the log."""
    logger.critical("the engine has died, and this replica ends with it", exc_info=why)
    os._exit(ENGINE_DIED)  # not an exception, which Serve would hand to the callers
