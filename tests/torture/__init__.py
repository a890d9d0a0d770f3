"""Harnesses that break the machine under the daemon and look whether its promises held."""
