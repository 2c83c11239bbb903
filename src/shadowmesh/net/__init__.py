"""Sockets: the WebSocket layer of relay and daemon, and the HTTP server of the admin ports."""
