"""What the API's endpoints look like on the wire: requests, chunks, replies, ends. Pure: no I/O."""
