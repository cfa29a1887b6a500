"""The student: data, packing, model, loss, loop, checkpoints and export. Imports no Ray outside `training.trainer`."""
