"""The relay: passes sealed frames on between the members of a network, and can read none of them."""
