"""Server-sent events as bytes, and the output text that is not counted yet. Pure: no I/O."""
