"""The same work by ours and by the libraries that others use, for `versus_peers.py`."""
