"""Sans-I/O heart of the daemon: peers, handshakes, sessions and who may send what. Time is an argument."""
