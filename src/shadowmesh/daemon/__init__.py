"""The client: a TUN device, the mesh engine and the link to the relay, in one event loop."""
