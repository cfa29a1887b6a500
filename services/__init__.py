"""The teacher and the data it makes: serving, client, prompts, acceptance, dataset, lineage."""

import os

# The allocator inside delta-rs keeps what it has freed, some 30 KiB a shard. It reads this when deltalake is imported.
os.environ.setdefault("_RJEM_MALLOC_CONF", "narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0")
