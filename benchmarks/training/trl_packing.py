"""TRL's packing on its own: ``python -m benchmarks.training.trl_packing LENGTHS.json CAPACITY WINDOW``, in its
environment. Prints fill, tokens lost and rows/s as JSON; the time has its moving of the tokens in it, one byte each.
"""

import json
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Pack rows of the lengths in a file, a window at a time."""
    import datasets
    import numpy as np
    import pyarrow as pa
    from trl import pack_dataset

    lengths = np.array(json.loads(Path(arguments[0]).read_text()), np.int32)
    capacity, window = int(arguments[1]), int(arguments[2])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(offsets[-1], np.int8)))
    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = datasets.Dataset(pa.table({"input_ids": column}))
    started = time.perf_counter()
    packed = pack_dataset(rows, capacity, "bfd", {"batch_size": window})
    seconds = time.perf_counter() - started
    kept = sum(sum(each) for each in packed["seq_lengths"])
    record = {
        "fill": kept / (len(packed) * capacity),
        "lost": int(lengths.sum()) - kept,
        "rows_per_s": len(lengths) / seconds,
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
