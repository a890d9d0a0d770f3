"""What clients see: routes, error answers, and the server that carries them."""

from daemon.http.app import create_app
from daemon.http.connections import Connections, Limits
from daemon.http.notified_server import Health, NotifiedServer, server_config
from daemon.http.service import Service

__all__ = [
    "Connections",
    "Health",
    "Limits",
    "NotifiedServer",
    "Service",
    "create_app",
    "server_config",
]
