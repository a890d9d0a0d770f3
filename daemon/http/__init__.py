"""What clients see: routes, error answers, and the server that carries them."""

from daemon.http.app import create_app
from daemon.http.notified_server import Health, NotifiedServer
from daemon.http.service import Service

__all__ = ["Health", "NotifiedServer", "Service", "create_app"]
