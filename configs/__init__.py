"""What every part agrees on: the run configuration, recipes and the table schema. Light: no torch, no Ray."""
