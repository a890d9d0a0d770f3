"""Whole data sets into a running daemon and out of it, over HTTP like any client."""
