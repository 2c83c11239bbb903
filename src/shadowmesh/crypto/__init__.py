"""Key derivation, join signatures, the Noise handshake and sealed sessions: pure, given randomness."""
