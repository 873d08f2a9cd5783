"""A finished run looked at again: verified, compared, repeated."""
