"""ShadowMesh: an encrypted overlay network that works wherever a WebSocket does."""

__version__ = "0.2.0"
