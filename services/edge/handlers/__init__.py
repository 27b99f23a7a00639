"""What answers each address: parse, call one function, answer."""
