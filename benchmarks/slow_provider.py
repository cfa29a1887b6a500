"""Ray's simulated cloud with nodes that take a while to come; its autoscaler's process loads it by name.

What is asked of it goes into a file, a JSON line each, since that process is not ours to ask.
"""

import json
import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SlowProvider(FakeMultiNodeProvider):
    """A node is a raylet on this machine, which is started ``delay_s`` after it was asked for.

    Ending one ends its own processes only.
    """

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: Any, labels: Any
    ) -> None:
        """Ray calls it on a thread of its own, so its autoscaler goes on meanwhile."""
        self._note("asked")
        time.sleep(self.provider_config["delay_s"])
        self._note("delivered")
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)

    def _note(self, event: str) -> None:
        with open(self.provider_config["events"], "a") as file:
            file.write(json.dumps({"event": event, "at": time.time()}) + "\n")
